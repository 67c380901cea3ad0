"""What glibc's unchanged allocator costs: the memory-heavy ops, forward and backward, in a process that keeps it.

All other figures are taken with memory kept for reuse ("warm"), which cannot be undone in a process. So this repeats
some of them in a child with STRUCFAST_ALLOCATOR=default, whose rows belong to <device>-default-allocator.json. By
default at 32x32, under STRUCFAST_FULL=1 at 64x64 as well.
"""

import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from benchmarks import _correctness, _plugin, _results, _timing

FOLDER = Path(__file__).parent
SIZES = (32, 64) if _timing.full() else (32,)
CASES = (
    "bench_modulate.py::test_modulate[{size}-contiguous-both]",
    "bench_adain.py::test_adain[{size}-contiguous-both]",
    "bench_group_norm_modulate.py::test_group_norm_modulate[{size}-float32-contiguous-both]",
)


@pytest.mark.skipif(
    os.environ.get("STRUCFAST_ALLOCATOR") == "default",
    reason="the whole run is in that mode: unset STRUCFAST_ALLOCATOR to have both",
)
def test_default_allocator(request, tmp_path):
    # The child takes the parent's word for it.
    for op in ("modulate", "adain", "group_norm_modulate"):
        _correctness.refuse_if_wrong(op, request.config.strucfast_run.ops())
    names = [str(FOLDER / case.format(size=size)) for size in SIZES for case in CASES]
    command = [sys.executable, "-m", "pytest", "--benchmark", "--save-results", "--benchmark-disable", "-q"]
    environment = os.environ | {"STRUCFAST_ALLOCATOR": "default", "RESULTS_DIR": str(tmp_path), _plugin.PREPARED: "1"}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *names], cwd=FOLDER.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert found["meta"]["allocator"] == "default"
    for _, rows in groupby(found["results"], key=lambda row: [row[name] for name in _results.KEY[:-1]]):
        request.config.strucfast_run.add(list(rows), found["meta"])
