"""What `pytest --benchmark` promises: groups are counted, wrong ops refused, no figure lost at the end of a run."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    _ceilings,
    _correctness,
    _groups,
    _passes,
    _peers,
    _plugin,
    _precompile,
    _results,
    _summary,
    _timing,
)

ROOT = Path(__file__).resolve().parents[2]
SHARES = {"bench_a": _groups.Share(3, ("add forward", "add both")), "bench_b": _groups.Share(3, ("mul forward",))}


# The count of groups


def test_every_group_that_ran_is_counted():
    count = _groups.count(["add forward", "add both", "mul forward"], {}, SHARES)
    assert count.ok
    assert count.lines() == ["3 of 3 groups ran"]


def test_a_group_that_did_not_run_is_missing():
    count = _groups.count(["add forward", "mul forward"], {}, SHARES)
    assert not count.ok
    assert count.missing == ("add both",)
    assert count.lines()[0] == "2 of 3 groups ran"


@pytest.mark.parametrize(("reason", "ok"), [("needs xgboost: pip install it", True), ("", False)])
def test_only_a_stated_reason_excuses_a_skip(reason, ok):
    count = _groups.count(["add forward", "add both"], {"bench_b": [reason, reason]}, SHARES)
    assert count.ok == ok
    assert any(reason in line for line in count.lines()[1:])


def test_a_reason_excuses_its_own_file_only():
    count = _groups.count(["mul forward"], {"bench_b": ["no compiler"]}, SHARES)
    assert count.missing == ("add forward", "add both")


@pytest.mark.parametrize("other", [None, ""], ids=["ran", "skipped without a reason"])
def test_a_reason_of_one_test_does_not_excuse_its_file(other):
    count = _groups.count(["mul forward", "add forward"], {"bench_a": ["needs Linux' /proc", other]}, SHARES)
    assert count.missing == ("add both",)


def test_all_reasons_of_a_file_are_said_once():
    count = _groups.count(["add forward", "add both"], {"bench_b": ["no GPU", "no compiler", "no GPU"]}, SHARES)
    assert count.excused == {"mul forward": "no GPU; no compiler"}


def test_an_undeclared_group_is_an_error():
    count = _groups.count(["add forward", "add both", "mul forward", "div forward"], {}, SHARES)
    assert not count.ok
    assert count.undeclared == ("div forward",)


def test_the_full_tier_must_report_its_own_groups(monkeypatch):
    shares = {"bench_a": _groups.Share(3, ("add forward",), ("add backward",))}
    monkeypatch.delenv("STRUCFAST_FULL", raising=False)
    assert _groups.count(["add forward"], {}, shares).ok
    monkeypatch.setenv("STRUCFAST_FULL", "1")
    assert _groups.count(["add forward"], {}, shares).missing == ("add backward",)
    assert _groups.count(["add forward", "add backward"], {}, shares).ok


def test_groups_of_rows():
    row = {"op": "add", "direction": "both"}
    assert _groups.group_of(row) == "add both"
    assert _groups.group_of(row | {"axis": "batch", "value": 32}) == "add both over batch"
    assert _groups.group_of(row | {"allocator": "default"}) == "add both, default allocator"


def test_declared_files_and_benchmarks_are_the_same():
    assert set(_groups.EXPECTED) == {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")}


def test_the_declared_time_is_within_nine_minutes():
    assert _groups.BEFORE + sum(share.seconds for share in _groups.EXPECTED.values()) <= 9 * 60


def test_time_left_follows_the_plan_and_then_the_machine(monkeypatch):
    monkeypatch.setattr(_groups, "EXPECTED", SHARES)
    assert _groups.seconds_left({}, {"bench_a": 2, "bench_b": 1}) == pytest.approx(6.0)
    # 1.5 seconds were planned and 23 spent: twice the plan, once 20 seconds of it are counted in.
    assert _groups.seconds_left({"bench_a": (1, 23.0)}, {"bench_a": 1}) == pytest.approx(1.5 * 43.0 / 21.5)
    assert _groups.seconds_left({"bench_a": (2, 3.0), "bench_b": (1, 3.0)}, {}) == 0.0


@pytest.mark.parametrize(
    ("args", "options", "whole"),
    [
        (["benchmarks"], {}, True),
        (["benchmarks/bench_adain.py"], {}, False),
        (["benchmarks", "benchmarks"], {}, False),
        (["benchmarks"], {"keyword": "adain"}, False),
        (["benchmarks"], {"markexpr": "compiles"}, False),
        (["benchmarks"], {"deselect": ["benchmarks/bench_adain.py"]}, False),
    ],
)
def test_only_a_whole_run_is_counted(args, options, whole):
    config = SimpleNamespace(
        rootpath=ROOT, args=args, invocation_params=SimpleNamespace(dir=ROOT), option=SimpleNamespace(**options)
    )
    assert _plugin._is_whole(config) == whole


# Whole runs of a small folder

PREPARE = """
from benchmarks import _correctness, _groups
_groups.EXPECTED = {
    "bench_a": _groups.Share(2, ("add both",)),
    "bench_b": _groups.Share(2, ("modulate forward",)),
    "bench_c": _groups.Share(2, ("mul forward",)),
}
_correctness._verdicts.update(modulate=VERDICT)
"""
BENCH_A = """
import torch
from benchmarks._passes import leaves, passes

def test_add(compare):
    inputs = leaves(torch.ones(64, 64))
    providers = {name: passes(lambda: inputs[0] + 1, inputs, "both") for name in ("strucfast", "eager")}
    compare("add", "(64,64)", "both", torch.float32, "contiguous", providers, check=False, seconds=0.01, moved=65536,
            exps=4096)
"""
BENCH_B = """
import torch

def test_modulate(compare):
    call = {"strucfast": lambda: torch.ones(3)}
    compare("modulate", "(3,)", "forward", torch.float32, "contiguous", call, seconds=0.01)
"""


BENCH_C = """
import pytest

def test_mul(compare):
    pytest.skip(REASON)
"""
BESIDE = """
def test_memory():
    pass
"""


def run(folder, verdict, reason, beside=""):
    (folder / "benchmarks").mkdir()
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\npython_files = bench_*.py\n")
    shutil.copy(ROOT / "conftest.py", folder / "conftest.py")
    (folder / "prepare.py").write_text(PREPARE.replace("VERDICT", verdict))
    (folder / "benchmarks/bench_a.py").write_text(BENCH_A)
    (folder / "benchmarks/bench_b.py").write_text(BENCH_B)
    (folder / "benchmarks/bench_c.py").write_text(BENCH_C.replace("REASON", reason) + beside)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "RESULTS_DIR": str(folder / "results")}
    command = [sys.executable, "-m", "pytest", "--benchmark", "--save-results", "-p", "prepare"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_whole_run_prints_ratios_and_keeps_figures(tmp_path):
    done = run(tmp_path, "None", "'needs the moon: wait for it'")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 3 groups ran" in done.stdout
    assert "left out: mul forward: needs the moon: wait for it" in done.stdout
    assert "[3/3, " in done.stdout
    (path,) = (tmp_path / "results").glob("*.json")
    found = json.loads(path.read_text())
    ours, eager, _ = found["results"]
    assert (ours["provider"], eager["provider"]) == ("strucfast", "eager")
    assert ours["extra_bytes"] >= 64 * 64 * 4
    ceilings = found["meta"]["ceilings"]
    assert ceilings["copy_gb_per_s"] > 0 and ceilings["exp_per_s"] > 0 and ceilings["threads"] >= 1
    assert ours["share_of_copy"] == pytest.approx(ours["gb_per_s"] / ceilings["copy_gb_per_s"], abs=1e-3)
    assert ours["share_of_exp"] == pytest.approx(ours["gexp_per_s"] * 1e9 / ceilings["exp_per_s"], abs=1e-3)
    assert "gb_per_s" not in eager


def test_a_test_that_ran_leaves_its_file_no_excuse(tmp_path):
    done = run(tmp_path, "None", "'needs the moon: wait for it'", BESIDE)
    assert done.returncode == 1
    assert "MISSING: mul forward" in done.stdout
    assert "2 of 3 groups ran" in done.stdout


def test_wrong_ops_and_skips_without_a_reason_fail_the_run(tmp_path):
    done = run(tmp_path, "'test_values failed'", "")
    assert done.returncode == 1
    assert "no figures for modulate: its correctness tests fail" in done.stdout
    assert "MISSING: modulate forward" in done.stdout
    assert "MISSING: mul forward" in done.stdout
    assert "1 of 3 groups ran" in done.stdout


def test_results_that_cannot_be_saved_stop_the_run_before_it_starts(tmp_path):
    # A file stands where the folder should be: root may write everywhere else.
    (tmp_path / "results").write_text("")
    done = run(tmp_path, "None", "")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"results cannot be saved to {tmp_path / 'results'}" in done.stderr
    assert "RESULTS_DIR" in done.stderr
    assert "bench_a" not in done.stdout


# Files of results


def test_a_full_disk_is_noticed_before_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(_results.CannotSave, match="No space left on device.*free space or set RESULTS_DIR"):
        _results.check_writable(tmp_path / "cpu.json")


def test_a_full_disk_in_the_run_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "cpu.json"
    row = dict.fromkeys(_results.KEY, "x")
    _results.record(path, {"device": "cpu"}, [row])
    before = path.read_text()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(_results.CannotSave, match="No space left"):
        _results.record(path, {"device": "cpu"}, [row | {"op": "y"}])
    monkeypatch.undo()
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{", "[]", '{"results": [{"op": "x"}]}'])
def test_a_damaged_file_of_results_is_named(tmp_path, text):
    path = tmp_path / "cpu.json"
    path.write_text(text)
    with pytest.raises(_results.CannotSave, match=r"cpu\.json is no result file .*; move it away"):
        _results.check_writable(path)
    assert path.read_text() == text


def test_the_newest_row_of_a_key_is_kept(tmp_path):
    path = tmp_path / "cpu.json"
    row = dict.fromkeys(_results.KEY, "x")
    _results.record(path, {}, [row | {"median_ms": 1}, row | {"op": "y", "median_ms": 2}])
    _results.record(path, {}, [row | {"median_ms": 3}])
    assert [r["median_ms"] for r in json.loads(path.read_text())["results"]] == [3, 2]


def test_rivals_of_an_older_run_do_not_stay_beside_new_figures(tmp_path):
    path = tmp_path / "cpu.json"
    row = dict.fromkeys(_results.KEY, "x")
    others = [row | {"op": "y", "provider": name, "median_ms": 1} for name in ("strucfast", "eager")]
    _results.record(path, {}, [*others, row | {"provider": "eager", "median_ms": 1}])
    _results.record(path, {}, [row | {"provider": "strucfast", "median_ms": 2}], whole=True)
    found = json.loads(path.read_text())["results"]
    assert found == [*others, row | {"provider": "strucfast", "median_ms": 2}]


def test_the_default_allocator_has_its_own_file(monkeypatch, tmp_path):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    warm, default = (_results.results_path(allocator=name) for name in ("warm (mmap_max 0, no trim)", "default"))
    assert default.name == warm.name.removesuffix(".json") + "-default-allocator.json"
    assert default.parent == warm.parent == tmp_path


# Correctness

CONTRACT = """
import pytest

@pytest.mark.parametrize("op", ["alpha", "beta", "beta_both", "skipped"])
@pytest.mark.parametrize("dtype", ["float32"])
@pytest.mark.parametrize("backend", ["cpp"])
def test_values_and_gradients(backend, dtype, op):
    if op == "skipped":
        pytest.skip("has no kernel here: build the CPU half")
    assert op != "beta", "beta is wrong"
"""


def test_failing_tests_refuse_their_own_op_only(tmp_path):
    tests = tmp_path / "tests/ops"
    tests.mkdir(parents=True)
    (tests / "test_contract.py").write_text(CONTRACT)
    (tests / "test_gamma.py").write_text("def test_equals_nothing():\n    assert False, 'gamma is wrong'\n")
    verdicts = _correctness.check(["alpha", "beta", "beta_both", "gamma", "skipped"], tmp_path)
    assert verdicts["alpha"] is None and verdicts["beta_both"] is None
    assert "beta is wrong" in verdicts["beta"]
    assert "gamma is wrong" in verdicts["gamma"]
    assert verdicts["skipped"] == "none of its correctness tests ran"


def test_tests_that_cannot_run_refuse_every_op(tmp_path):
    tests = tmp_path / "tests/ops"
    tests.mkdir(parents=True)
    (tests / "test_contract.py").write_text("import nothing_of_that_name\n")
    verdicts = _correctness.check(["alpha", "beta"], tmp_path)
    assert set(verdicts) == {"alpha", "beta"}
    assert all("nothing_of_that_name" in text for text in verdicts.values())


def test_what_is_no_registered_op_rests_on_its_files(tmp_path, monkeypatch):
    files = {
        "tests/metrics/test_dci.py": "def test_bins():\n    assert False, 'dci is wrong'\ndef test_plot():\n    pass\n",
        "tests/metrics/test_mig.py": "def test_golden():\n    pass\ndef test_plot():\n    assert False\n",
        "tests/metrics/test_evaluate.py": "def test_suite():\n    pass\n",
        "tests/ops/test_contract.py": CONTRACT,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    verdicts = _correctness.check(["alpha", "dci", "mig", "evaluate"], tmp_path)
    assert verdicts["alpha"] is None and verdicts["mig"] is None
    assert "dci is wrong" in verdicts["dci"]
    assert "dci is wrong" in verdicts["evaluate"], "its metrics are what it times"
    assert all((ROOT / file).exists() for found in _correctness.WHOLE.values() for file in found)


def test_values_that_differ_are_no_comparison(monkeypatch):
    x = torch.linspace(-1, 1, 64)
    functions = {"strucfast": lambda: (x, x + 1), "eager": lambda: [x, x + 1], "other": lambda: (x, x + 1.1)}
    with pytest.raises(AssertionError, match="other: "):
        _passes.agree(functions, "forward", rtol=1e-5, atol=1e-5)
    _passes.agree(functions, "both", rtol=1e-5, atol=0.2)
    monkeypatch.setenv(_precompile.CLAIMS, "folder")
    _passes.agree(functions, "forward", rtol=1e-5, atol=1e-5)


def test_large_outputs_are_compared_in_part(monkeypatch):
    monkeypatch.setattr(_passes, "COMPARED", 16)
    (part,) = _passes._some(torch.arange(40.0).reshape(10, 4))
    assert part[:, 0].tolist() == [0.0, 12.0, 24.0, 36.0]


def test_one_run_tests_all_ops(monkeypatch):
    asked = []

    def check(ops):
        asked.append(list(ops))
        return {op: "wrong" if op == "mmd" else None for op in ops}

    monkeypatch.setattr(_correctness, "_verdicts", {})
    monkeypatch.setattr(_correctness, "check", lambda ops: check([_correctness.NAMES.get(op, op) for op in ops]))
    _correctness.refuse_if_wrong("modulate", ["adain", "mmd", "aggregate"])
    _correctness.refuse_if_wrong("aggregate", ["modulate"])
    with pytest.raises(RuntimeError, match="no figures for mmd: its correctness tests fail\nwrong"):
        _correctness.refuse_if_wrong("mmd")
    assert len(asked) == 1


# Measuring


def test_shares_of_the_ceilings(monkeypatch):
    monkeypatch.setattr(_ceilings, "measure", lambda: {"copy_gb_per_s": 20.0, "exp_per_s": 4e9})
    # 10 MB in 1 ms are 10 GB/s, 3e6 in 1 ms are 3e9 a second.
    fields = _ceilings.shares(1.0, 10e6, 3e6)
    assert fields == {"gb_per_s": 10.0, "share_of_copy": 0.5, "gexp_per_s": 3.0, "share_of_exp": 0.75}
    assert _ceilings.shares(1.0, None, None) == {}


def test_the_ceilings_own_functions_do_what_they_say():
    own = _ceilings._own()
    if own is None:
        pytest.skip("needs a C++ compiler (g++, or the one that CXX names)")
    values, out = torch.linspace(-10, 10, 1008), torch.zeros(1008)
    own.exp_many(values.data_ptr(), out.data_ptr(), 1000, 3)
    torch.testing.assert_close(out[:1000], values[:1000].exp(), rtol=1e-6, atol=0)
    assert out[1000:].eq(0).all()
    own.copy_past_caches(values.data_ptr(), out.data_ptr(), 992)
    assert torch.equal(out[:992], values[:992]) and not torch.equal(out, values)


def test_without_a_compiler_torch_sets_the_ceiling(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(_ceilings, "_own", _ceilings._own.__wrapped__)
    monkeypatch.setattr(_ceilings, "_best_seconds", lambda call: (call(), 1.0)[1])
    assert _ceilings.exp_per_s() == (50 * _ceilings.EXPS_PER_THREAD * torch.get_num_threads(), "torch.exp")


def test_slow_calls_are_called_five_times_only():
    calls = []
    _timing.compare({"slow": lambda: (calls.append(None), time.sleep(0.06))}, seconds=0.0)
    assert len(calls) == 5


@pytest.mark.parametrize(("direction", "expected"), [("forward", 2), ("backward", 3), ("both", 5)])
def test_work_per_direction(direction, expected):
    assert _passes.per_direction(direction, 2, 3) == expected


def test_a_compiled_backward_can_be_repeated():
    (x,) = _passes.leaves(torch.linspace(-1, 1, 64))
    compiled = torch.compile(lambda: (x - x.mean()).exp().sin(), backend="aot_eager")
    backward = _passes.passes(compiled, [x], "backward")
    first, second = backward(), backward()
    torch.testing.assert_close(first, second)


def test_each_case_is_compiled_by_one_process(monkeypatch, tmp_path):
    def item(size, direction):
        callspec = SimpleNamespace(params={"size": size, "direction": direction})
        return SimpleNamespace(nodeid=f"bench_a.py::test_add[{size}-{direction}]", callspec=callspec)

    monkeypatch.setenv(_precompile.CLAIMS, str(tmp_path))
    assert _precompile.claim(item(4, "forward"))
    assert _precompile.claim(item(4, "both")), "the directions of a case stay together"
    monkeypatch.setattr(_precompile.os, "getpid", lambda: -1)
    assert not _precompile.claim(item(4, "backward"))
    assert _precompile.claim(item(8, "forward"))


def test_a_peer_that_is_not_installed_is_left_out_with_what_to_do(monkeypatch):
    monkeypatch.setattr(_peers, "missing", {})
    assert _peers.find("math").sqrt(4) == 2
    assert _peers.lines() == []
    assert _peers.find("no_such_peer.models") is None
    (line,) = _peers.lines()
    assert line.startswith("without no_such_peer") and "pip install 'strucfast[bench]'" in line


# The table


def rows(**medians):
    shared = {"op": "add", "case": "(4,)", "direction": "both", "dtype": "float32", "layout": "contiguous"}
    return [shared | {"provider": name.replace("torch_", "torch."), "median_ms": ms} for name, ms in medians.items()]


def test_losses_are_named():
    found = _summary.losses([rows(strucfast=1.0, eager=0.9, torch_compile=0.96), rows(strucfast=1.0, eager=0.96)])
    assert found == ["below 0.95x: add (4,) both float32 contiguous: eager 0.90x"]
    found = _summary.losses([rows(strucfast=1.0, eager=2.0, channels_last=0.94, bmm=0.1)])
    assert found == ["below 0.95x: add (4,) both float32 contiguous: channels_last 0.94x"]


def test_ratios_are_against_what_a_user_gets():
    found = rows(cpp=1.0, strucfast=2.0, eager=4.0)
    assert _summary.ratios(found) == {"eager": 2.0}
    assert "eager 2.00x  (cpp 1 ms)" in _summary.table([found])[1]


def test_a_comparison_needs_one_of_ours():
    with pytest.raises(ValueError, match="a provider of ours .*got eager"):
        _results.ours(rows(eager=1.0))
