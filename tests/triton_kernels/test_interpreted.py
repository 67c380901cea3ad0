"""Runs interpreted/check_*.py under TRITON_INTERPRET=1, each file in a process of its own.

Triton reads the variable when a kernel is decorated, so this process (whose kernels compile) cannot run them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the Triton kernels need triton; install it with pip install triton")

FOLDER = Path(__file__).parent / "interpreted"
CHECKS = sorted(FOLDER.glob("check_*.py"))


def run_checks(path: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=check_*.py", str(path)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False)


def test_there_are_checks():
    assert [path.stem for path in CHECKS] == [
        "check_golden", "check_group_norm_modulate", "check_math", "check_modulate", "check_str_tfm",
    ]  # fmt: skip


@pytest.mark.parametrize("path", CHECKS, ids=lambda path: path.stem)
def test_kernels_under_the_interpreter(path):
    result = run_checks(path)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    summary = result.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed and int(passed.group(1)) >= 12 and "skipped" not in summary and "xfailed" not in summary, summary


def test_a_wrong_kernel_would_fail(tmp_path):
    # The checks must be able to fail: the same comparison against a wrong expectation.
    check = tmp_path / "check_wrong.py"
    check.write_text(
        "import torch\n"
        "from common import assert_close, random\n"
        "from strucfast.triton_kernels import modulate_forward\n"
        "def test_wrong():\n"
        "    x, s = random((2, 3, 4), torch.float32, 1), random((2, 3), torch.float32, 2)\n"
        "    wrong = x.double() * s.double()[:, :, None] * (1 + 1e-4) + s.double()[:, :, None]\n"
        "    assert_close(modulate_forward(x, s, s), wrong, wrong.float())\n"
    )
    result = run_checks(check)
    assert result.returncode == 1 and "1 failed" in result.stdout, result.stdout
