"""Each example runs, in its reduced form, and says what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SAID = {
    "film_swap.py": ["3 replaced, 0 left alone", "GroupNorm + SiLU", "converted, FiLM in the kernel"],
    "loss_swap.py": ["before  first loss", "after   first loss", "largest relative difference"],
    "metrics_on_arrays.py": ["4 codes, 3 factors", "mig", "dci", "shape"],
}


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_every_example_is_listed():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_runs_and_says_what_it_found(name):
    result = run(name, "--quick")
    assert result.returncode == 0, result.stderr
    for words in SAID[name]:
        assert words in result.stdout, result.stdout


def test_metrics_of_a_file_of_ones_own(tmp_path):
    factors = np.random.default_rng(0).integers(4, size=(600, 2))
    np.savez(tmp_path / "mine.npz", codes=factors.astype(np.float32), factors=factors)
    result = run("metrics_on_arrays.py", tmp_path / "mine.npz")
    assert result.returncode == 0, result.stderr
    assert float(re.search(r"^mig +(\S+)", result.stdout, re.MULTILINE)[1]) > 0.9
    np.savez(tmp_path / "bare.npz", codes=factors.astype(np.float32))
    assert "no array 'factors'" in run("metrics_on_arrays.py", tmp_path / "bare.npz").stderr
