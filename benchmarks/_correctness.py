"""A speed-up of a wrong answer is none: figures of an op are refused while its correctness tests fail."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = "tests/ops/test_contract.py"
CHOSEN = "values_and_gradients or poisoned or equals"
# Benchmarks that are named otherwise than the registered op, and ops whose own tests share a file.
NAMES = {"aggregate": "aggregate_log_density"}
FILES = {
    "aggregate_log_density": "tests/ops/test_aggregate.py",
    "mmd": "tests/ops/test_pairwise.py",
    "mmd_dimwise": "tests/ops/test_pairwise.py",
    "hsic": "tests/ops/test_pairwise.py",
}
# What is timed and is no registered op: its files' tests count, but for plots, real data and fallbacks.
WHOLE = {
    "dci": ("tests/metrics/test_dci.py", "tests/metrics/test_boosting.py"),
    "mig": ("tests/metrics/test_mig.py", "tests/metrics/test_histogram.py"),
    "explicitness": ("tests/metrics/test_explicitness.py", "tests/metrics/test_logistic.py"),
    "render_shapes3d": ("tests/data/test_shapes3d.py",),
    "render_dsprites": ("tests/data/test_dsprites.py",),
}
WHOLE["evaluate"] = ("tests/metrics/test_evaluate.py", *(file for files in WHOLE.values() for file in files))
ASIDE = "plot or real_file or damaged or truncated or without_the or random_forest or extra_trees"

_verdicts: dict[str, str | None] = {}


def check(ops: Iterable[str], root: Path = ROOT) -> dict[str, str | None]:
    """Runs the correctness tests of all ``ops`` in one pytest process: op -> None, or the text of what failed."""
    ops = [NAMES.get(op, op) for op in ops]
    own = {op: WHOLE.get(op, (FILES.get(op, f"tests/ops/test_{op}.py"),)) for op in ops}
    files = sorted({file for found in own.values() for file in found if (root / file).exists()})
    # The name of its file selects an op's own tests; the contract's carry the op's name.
    registered = [op for op in ops if op not in WHOLE]
    words = sorted({*registered, *(Path(file).stem for op in registered for file in own[op] if file in files)})
    whole = sorted({Path(file).name for op in ops if op in WHOLE for file in own[op]})
    chosen = [f"({' or '.join(words)}) and ({CHOSEN})"] if words else []
    chosen += [f"({' or '.join(whole)}) and not ({ASIDE})"] if whole else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    command += [*([CONTRACT] if registered else []), *files, "-k", " or ".join(f"({part})" for part in chosen)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        done = subprocess.run([*command, f"--junitxml={report}"], cwd=root, capture_output=True, text=True)
        # 1 is "tests failed": those of some ops. Anything else left no op tested as it should be.
        if done.returncode not in (0, 1) or not report.exists():
            return dict.fromkeys(ops, f"pytest ended with {done.returncode}\n{(done.stdout + done.stderr)[-1500:]}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    return {op: _verdict(op, own[op], cases) for op in ops}


def _verdict(op: str, own: tuple[str, ...], cases: list[ElementTree.Element]) -> str | None:
    passed, failures = 0, []
    for case in cases:
        module, name = case.get("classname", "").replace(".", "/") + ".py", case.get("name", "")
        # A file that several ops share counts for each of them; an error of collection has no test to name.
        mine = module in own or (module == CONTRACT and op in _parameters(name))
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        if problem is not None and (mine or not case.get("classname")):
            failures.append(f"{name}: {problem.get('message', '')[:500]}")
        passed += mine and problem is None and case.find("skipped") is None
    if failures:
        return "\n".join(failures[:5])
    return None if passed else "none of its correctness tests ran"


def _parameters(name: str) -> list[str]:
    """ "test_values[torch.float32-mmd-cpp-cpu]" -> its parameters; no op has a hyphen in its name."""
    return name.partition("[")[2].removesuffix("]").split("-")


def refuse_if_wrong(op: str, along: Iterable[str] = ()) -> None:
    """Raises RuntimeError while the op's correctness tests fail; ops ``along`` with it are tested in the same run."""
    op = NAMES.get(op, op)
    if op not in _verdicts:
        _verdicts.update(check([op, *(other for other in along if NAMES.get(other, other) not in _verdicts)]))
    if _verdicts[op] is not None:
        raise RuntimeError(f"no figures for {op}: its correctness tests fail\n{_verdicts[op]}")
