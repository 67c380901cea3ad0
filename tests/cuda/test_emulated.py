"""The CUDA C++ backend, bindings and whole kernels, run on the CPU by the emulator: no GPU is needed.

Every test starts a process whose "cuda" backend is the emulated library (emulator/emulated_backend.py).
"""

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CHECKS = HERE / "emulator" / "kernel_checks.py"
METRICS = HERE / "emulator" / "metric_checks.py"
OPS = HERE.parent / "ops"


def _passed(output: str) -> int:
    return int(output.split(" passed")[0].split()[-1])


def test_kernels_against_float64(run_emulated):
    assert _passed(run_emulated(CHECKS)) >= 90


@pytest.mark.parametrize("order", ("reverse", "shuffled"))
def test_kernels_in_another_order_of_threads(run_emulated, order):
    """A missing barrier, a race or a read of what nobody wrote gives other numbers in another order."""
    assert _passed(run_emulated(CHECKS, "-k", "not float64 and not float16", order=order)) >= 30


def test_metrics_are_the_hosts(run_emulated):
    assert _passed(run_emulated(METRICS)) >= 60


@pytest.mark.parametrize("order", ("reverse", "shuffled"))
def test_metrics_in_another_order_of_threads(run_emulated, order):
    chosen = "joint_counts or column_range or trees_are_the_hosts or regression_is_the_hosts or few_rows"
    assert _passed(run_emulated(METRICS, "-k", chosen, order=order)) >= 25


def test_the_op_contract_holds(run_emulated):
    chosen = "cuda-cpu and (values_and or without_grad or keep_shape or only_where or poisoned or repeatable)"
    assert _passed(run_emulated(OPS / "test_contract.py", "-k", chosen)) >= 3 * 9


def test_golden_values(run_emulated):
    assert _passed(run_emulated(OPS / "test_golden_modulation.py", "-k", "cuda")) >= 10


def test_the_emulator_finds_what_it_should(emulator_selftest):
    """Exact: the division by multiplication. Found out: a kernel without a barrier, one whose barrier some threads
    skip, one that writes beyond its shared memory, one that does not wait for its copies."""
    assert emulator_selftest == {
        "division": "right numbers",
        "good": "right numbers",
        "no barrier": "wrong numbers",
        "divergent": "deadlock: a barrier or a shuffle that some thread never reaches",
        "overrun": "a write beyond the block's shared memory",
        "unfinished copy": "a thread ended with copies to shared memory still under way",
    }
