"""Runs interpreted/check_*.py under TRITON_INTERPRET=1, in one process of their own.

Triton reads the variable when a kernel is decorated, so this process (whose kernels compile) cannot run them.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("triton", reason="the Triton kernels need triton; install it with pip install triton")

FOLDER = Path(__file__).parent / "interpreted"
# Fewest checks of each file: a file that stops being collected must not pass.
CHECKS = {
    "check_adain": 100,
    "check_aggregate": 35,
    "check_golden": 12,
    "check_group_norm_modulate": 40,
    "check_kl_terms": 35,
    "check_lp_nested": 45,
    "check_math": 40,
    "check_modulate": 50,
    "check_pairwise": 35,
    "check_str_tfm": 20,
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Per file: how many checks passed, and the reports of those that did not."""
    report = tmp_path_factory.mktemp("interpreted") / "report.xml"
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER)}
    options = ["-q", "-p", "no:cacheprovider", "-o", "python_files=check_*.py", f"--junitxml={report}", str(FOLDER)]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    # 0: all passed, 1: some failed, which the tests below report; anything else is no result at all.
    assert result.returncode in (0, 1), result.stdout[-6000:] + result.stderr[-2000:]
    found: dict[str, tuple[int, list[str]]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        stem = next(part for part in case.get("classname").split(".") if part.startswith("check_"))
        passed, broken = found.get(stem, (0, []))
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        text = [
            f"{case.get('name')}: {child.tag}: {(child.text or child.get('message') or '')[-1500:]}" for child in bad
        ]
        found[stem] = (passed + (not bad), broken + text)
    return found


def test_every_file_ran(outcomes):
    assert sorted(outcomes) == sorted(CHECKS) == sorted(path.stem for path in FOLDER.glob("check_*.py"))


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_under_the_interpreter(name, outcomes):
    passed, broken = outcomes[name]
    assert not broken, "\n".join(broken[:10])
    assert passed >= CHECKS[name]
