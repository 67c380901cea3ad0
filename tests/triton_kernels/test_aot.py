"""Ahead-of-time compilation of every Triton kernel for GPUs that are not here, with resource gates.

Compiles run in subprocesses without TRITON_INTERPRET, under which nothing compiles. STRUCFAST_FULL=1 takes every
variant of the registry, otherwise one per kernel and dtype is taken.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the Triton kernels need triton; install it with pip install triton")

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def run(*arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_within_the_gates(target):
    full = ["--full"] if os.environ.get("STRUCFAST_FULL") == "1" else []
    rows = [json.loads(line) for line in run("-m", "strucfast.triton_kernels._aot", target, *full).splitlines()]
    broken = [f"{row['kernel']} ({row['name']}): {row['violations']}" for row in rows if row["violations"]]
    assert not broken, "\n".join(broken)
    # Ten kernels in four dtypes, three in two: an empty registry must not pass.
    assert len(rows) >= 40
    if target.startswith("sm_"):
        # Without 16-byte accesses no kernel reaches the copy bandwidth; the small weights' sums do without.
        narrow = [
            r["name"] for r in rows if "modulate" in r["name"] and "64-" in r["name"] and not r["vector_accesses"]
        ]
        assert not narrow


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_gates_catch_bad_kernels(target):
    found = json.loads(run(str(Path(__file__).with_name("bad_kernels.py")), target))
    assert any("stack or spills" in text for text in found["spilling"])
    assert any(".f64 instructions" in text for text in found["double_constant"])
    assert any("shared memory" in text for text in found["memory_hog"])
    assert found["harmless"] == []


def test_registry_covers_every_kernel():
    script = (
        "import json; from strucfast.triton_kernels import _aot; v = _aot.variants(); "
        "print(json.dumps([sorted(_aot.kernels()), sorted({c.kernel.__name__ for c in v}), "
        "sorted({c.kernel.__name__ for c in _aot.representatives(v)})]))"
    )
    exist, registered, quick = json.loads(run("-c", script))
    assert len(exist) >= 11
    assert exist == registered == quick


def test_kernels_outside_the_registry_are_noticed():
    # kernels() finds jit functions by name in the launchers' modules: a new one without a case must show up.
    script = (
        "from strucfast.triton_kernels import _aot, modulate; "
        "modulate._new_kernel = modulate._modulate_forward_kernel; "
        "print('_new_kernel' in _aot.kernels())"
    )
    assert run("-c", script).strip() == "True"


def test_every_jit_kernel_is_imported_where_the_registry_looks():
    folder = Path(__file__).parents[2] / "triton_kernels"
    named = set()
    for path in folder.glob("*.py"):
        lines = path.read_text().splitlines()
        for decorator, definition in itertools.pairwise(lines):
            name = definition.removeprefix("def ").split("(")[0]
            if decorator == "@triton.jit" and name.endswith("_kernel"):
                named.add(name)
    script = "import json; from strucfast.triton_kernels import _aot; print(json.dumps(sorted(_aot.kernels())))"
    assert sorted(named) == json.loads(run("-c", script))
