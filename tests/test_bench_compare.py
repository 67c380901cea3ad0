"""`strucfast bench compare A B`: which ratios fell, and what is no result file."""

import json
from pathlib import Path

import pytest

from strucfast.cli import main

KEY = {"op": "adain", "direction": "both", "dtype": "float32", "layout": "contiguous"}


def write(path, ours, eager=10.0, spread=0.01, cases=("small",), provider="strucfast"):
    rows = []
    for case in cases:
        for name, ms in ((provider, ours), ("eager", eager)):
            times = {"median_ms": ms, "p20_ms": ms * (1 - spread), "p80_ms": ms * (1 + spread)}
            rows.append({**KEY, "case": case, "provider": name, **times})
    path.write_text(json.dumps({"meta": {"device": "d"}, "results": rows}))
    return str(path)


@pytest.mark.parametrize(
    ("after", "spread", "options", "code", "said"),
    [
        (5.0, 0.01, [], 0, "0 regressions"),
        (5.2, 0.01, [], 0, "0 regressions"),
        (6.0, 0.01, [], 1, "REGRESSION"),
        (6.0, 0.2, [], 0, "within the spread"),
        (6.0, 0.01, ["--threshold", "0.3"], 0, "0 regressions"),
        (5.2, 0.001, ["--threshold", "0.01"], 1, "REGRESSION"),
        (3.0, 0.01, [], 0, "better"),
    ],
)
def test_exit_code_and_lines(tmp_path, capsys, after, spread, options, code, said):
    first = write(tmp_path / "a.json", 5.0, spread=spread)
    second = write(tmp_path / "b.json", after, spread=spread)
    assert main(["bench", "compare", first, second, *options]) == code
    assert said in capsys.readouterr().out


def test_a_machine_twice_as_slow_is_no_regression(tmp_path):
    first, second = write(tmp_path / "a.json", 5.0), write(tmp_path / "b.json", 10.0, eager=20.0)
    assert main(["bench", "compare", first, second]) == 0


def test_cases_of_one_file_and_bare_kernels_are_counted(tmp_path, capsys):
    first = write(tmp_path / "a.json", 5.0, cases=("small", "large"))
    second = write(tmp_path / "b.json", 5.0, cases=("small", "odd", "new"))
    rows = json.loads(Path(second).read_text())
    rows["results"].append({**rows["results"][0], "provider": "cuda kernel"})
    Path(second).write_text(json.dumps(rows))
    assert main(["bench", "compare", first, second]) == 0
    said = capsys.readouterr().out
    assert "1 cases compared" in said and "1 only in the first" in said and "2 only in the second" in said
    assert "1 without a baseline" in said


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("warm (mmap_max 0, no trim)", "default", 2),
        ("warm (mmap_max 0, no trim)", "warm", 0),
        ("default", "default", 0),
        (None, "default", 0),
    ],
)
def test_two_allocators_are_not_compared(tmp_path, capsys, first, second, code):
    paths = []
    for name, allocator in (("a.json", first), ("b.json", second)):
        paths.append(write(tmp_path / name, 5.0))
        content = json.loads(Path(paths[-1]).read_text())
        content["meta"] |= {} if allocator is None else {"allocator": allocator}
        Path(paths[-1]).write_text(json.dumps(content))
    assert main(["bench", "compare", *paths]) == code
    said = capsys.readouterr().err
    words = (paths[0], "the warm allocator", paths[1], "the default one", "compare two files of one allocator")
    assert code == 0 or all(part in said for part in words)


def test_shares_series_and_ceilings_are_read_over(tmp_path, capsys):
    paths = []
    for name, share in (("a.json", 0.8), ("b.json", 0.2)):
        paths.append(write(tmp_path / name, 5.0, cases=("batch 512, D 10",)))
        content = json.loads(Path(paths[-1]).read_text())
        content["meta"]["ceilings"] = {"copy_gb_per_s": 35.0, "exp_per_s": 4e9, "threads": 2}
        for row in content["results"]:
            row |= {"gb_per_s": 10.0, "share_of_copy": share, "axis": "batch", "value": 512}
        Path(paths[-1]).write_text(json.dumps(content))
    assert main(["bench", "compare", *paths]) == 0
    assert "1 cases compared" in capsys.readouterr().out


def test_the_committed_results_compare_with_themselves(capsys):
    for path in (Path(__file__).parents[1] / "benchmarks" / "results").glob("*.json"):
        assert main(["bench", "compare", str(path), str(path)]) == 0
        assert " 0 regressions" in capsys.readouterr().out


def damaged(**change):
    row = {**KEY, "case": "c", "provider": "strucfast", "median_ms": 1.0, "p20_ms": 1.0, "p80_ms": 1.0, **change}
    return json.dumps({"meta": {}, "results": [row]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"meta": {}, "resul', "not a whole JSON file"),
        ("[1, 2]", "expected benchmark results"),
        ('{"results": []}', "expected benchmark results"),
        ('{"meta": {}, "results": [3]}', "results[0] lacks op"),
        (damaged(median_ms=0), "median_ms must be a positive number, got 0"),
        (damaged(p80_ms="fast"), "p80_ms must be a positive number, got 'fast'"),
        (damaged(provider=""), "provider must be a name"),
        (damaged(), "no case in common"),
    ],
)
def test_what_is_no_result_file_is_said(tmp_path, capsys, text, message):
    (tmp_path / "b.json").write_text(text)
    assert main(["bench", "compare", write(tmp_path / "a.json", 5.0), str(tmp_path / "b.json")]) == 2
    said = capsys.readouterr().err
    assert message in said and "b.json" in said and len(said.splitlines()) == 1


def test_wrong_use_is_said(tmp_path, capsys):
    first = write(tmp_path / "a.json", 5.0)
    assert main(["bench", "compare", first, first, "--threshold", "2"]) == 2
    assert "--threshold" in capsys.readouterr().err
    assert main(["bench", "compare", first, str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
    assert main(["bench", "race"]) == 2
    assert "bench race" in capsys.readouterr().err
    assert main(["bench"]) == 0
