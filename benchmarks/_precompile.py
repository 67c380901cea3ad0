"""Fills inductor's cache on all cores before anything is timed: compiling is the longest part of a first run.

Tests marked ``compiles`` run once in child processes in which the ``compare`` fixture calls the provider
"torch.compile" and ends the test. The run itself then finds every graph in the cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

# The timers of `make gpu` import this where no pytest is.
if TYPE_CHECKING:
    import pytest

# Set in a child: the folder in which the children say which cases they have taken.
CLAIMS = "STRUCFAST_COMPILE_CLAIMS"
MARK = "compiles"


def is_child() -> bool:
    return CLAIMS in os.environ


def case_of(item: pytest.Item) -> str:
    """What is compiled by one process: the directions of a case share most of their graphs."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    kept = {name: str(value) for name, value in sorted(parameters.items()) if name != "direction"}
    return f"{item.nodeid.partition('[')[0]} {kept}"


def claim(item: pytest.Item) -> bool:
    """Whether this child compiles the item's case: the first one that asks does."""
    place = Path(os.environ[CLAIMS], hashlib.sha256(case_of(item).encode()).hexdigest())
    mine = str(os.getpid())
    try:
        with place.open("x") as file:
            file.write(mine)
    except FileExistsError:
        return place.read_text() == mine
    return True


def compile_all(items: list[pytest.Item], root: Path) -> str | None:
    """Runs the children and waits; None, or what went wrong, which costs time in the run and nothing else."""
    names = [item.nodeid for item in items]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "--benchmark", "--benchmark-disable", "-q", "-p", "no:cacheprovider"]
        # Workers of inductor's own would each import torch again, for one kernel at a time; and threads that spin at a
        # barrier while another child holds their core take more time than the compilers.
        quiet = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        environment = os.environ | {CLAIMS: folder} | quiet
        children = [
            subprocess.Popen(
                [*command, *names],
                cwd=root,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(min(torch.get_num_threads(), len({case_of(item) for item in items})))
        ]
        try:
            outputs = [child.communicate()[0] for child in children]
        finally:
            for child in children:
                child.kill()
    failed = [text for child, text in zip(children, outputs) if child.returncode != 0]
    return failed[0][-1500:] if failed else None
