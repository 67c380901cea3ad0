"""The newcomer's path: each step timed in a clone of what is committed, nothing written when one fails."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import _plugin, _results, newcomer
from benchmarks.tables import results

MAKEFILE = f"""
setup:
\tsleep 0.3; touch ready
demo: setup
\tmkdir -p runs/demo && test -f ready && sleep 0.1 && touch runs/demo/report.html
bench: setup
\t@echo "===== {newcomer.TABLE} (3 comparisons) ====="
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A checkout with a fake Makefile; what it has not committed must not count."""
    folder = tmp_path / "source"
    folder.mkdir()
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(newcomer.tempfile, "tempdir", None)
    commit(folder, MAKEFILE, "init", "-q", ".")
    (folder / "Makefile").write_text("setup:\n\tfalse\n")
    return folder


def commit(folder, makefile, *first):
    (folder / "Makefile").write_text(makefile)
    who = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]
    for command in ([*first] if first else ["status"], ["add", "Makefile"], [*who, "commit", "-q", "-m", "m"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)


def written(tmp_path):
    path = tmp_path / "results" / "newcomer" / _results.results_path().name
    return json.loads(path.read_text()) if path.exists() else None


def run(source, *options):
    return newcomer.main(["--source", str(source), *options])


def test_both_paths_are_timed_and_rendered(source, tmp_path):
    assert run(source) == 0
    content = written(tmp_path)
    steps = {(step["path"], step["name"]): step["seconds"] for step in content["steps"]}
    assert list(steps) == [
        (path, name)
        for path, last in (("demo", "demo"), ("bench", "benchmarks"))
        for name in ("clone", newcomer.SET_UP, last)
    ]
    assert steps["demo", newcomer.SET_UP] == steps["bench", newcomer.SET_UP] >= 0.3
    assert steps["demo", "demo"] >= 0.4 > steps["demo", "clone"] >= 0
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True).stdout
    assert head.startswith(content["meta"]["commit"]) and len(content["meta"]["commit"]) == 10
    ((meta, paths),) = results.newcomers(tmp_path / "results" / "newcomer")
    assert meta["device"] == _results.device_name() and [len(steps) for steps in paths.values()] == [3, 3]
    assert not list(tmp_path.glob("strucfast-newcomer-*")) and not list((tmp_path / "results").rglob("*.tmp"))


def test_one_path_at_a_time_of_one_commit_are_kept_together(source, tmp_path):
    assert run(source, "demo") == 0 and run(source, "bench") == 0
    assert [step["path"] for step in written(tmp_path)["steps"]] == ["demo"] * 3 + ["bench"] * 3
    commit(source, MAKEFILE + "# another commit\n")
    assert run(source, "bench") == 0
    assert [step["path"] for step in written(tmp_path)["steps"]] == ["bench"] * 3


@pytest.mark.parametrize(
    ("makefile", "options", "words"),
    [
        (
            "setup:\n\t@echo no compiler; exit 3\n",
            (),
            "set-up (make setup) ended with exit code 2; its last lines:\nno",
        ),
        ("setup:\n\t@true\ndemo:\n\t@true\n", ("demo",), "demo (make demo) ended without runs/demo/report.html"),
        ("setup:\n\t@true\nbench:\n\t@echo nothing\n", ("bench",), "bench (make bench) ended without its table"),
        ("setup:\n\t@sleep 30\n", ("--limit", "0.5"), "set-up (make setup) did not end within 0.5 s"),
    ],
)
def test_a_step_that_fails_is_named_and_nothing_is_written(source, tmp_path, capsys, makefile, options, words):
    commit(source, makefile)
    assert run(source, *options) == 1
    assert words in capsys.readouterr().err
    assert written(tmp_path) is None and not list(tmp_path.glob("strucfast-newcomer-*"))


def test_what_is_no_checkout_or_no_path_is_said(source, tmp_path, capsys):
    assert newcomer.main(["--source", str(tmp_path / "nowhere")]) == 1
    assert "clone (git clone" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        run(source, "test")
    assert end.value.code == 2 and "expected demo or bench, got 'test'" in capsys.readouterr().err


def test_a_file_of_another_kind_is_said_before_the_run(source, tmp_path, capsys):
    path = tmp_path / "results" / "newcomer" / _results.results_path().name
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    assert run(source) == 1
    captured = capsys.readouterr()
    assert "is no file of a newcomer's path" in captured.err and "clone" not in captured.out
    assert path.read_text() == "[]"


def test_a_newcomers_shell_has_no_settings_and_no_caches(tmp_path, monkeypatch):
    for name in ("STRUCFAST_FULL", "RESULTS_DIR", "VIRTUAL_ENV", "MAKEFLAGS", "GIT_DIR"):
        monkeypatch.setenv(name, "x")
    found = newcomer.environment(tmp_path)
    assert not {"STRUCFAST_FULL", "RESULTS_DIR", "VIRTUAL_ENV", "MAKEFLAGS", "GIT_DIR"} & found.keys()
    assert found["PATH"] == os.environ["PATH"] and found["PIP_CACHE_DIR"] == str(tmp_path / "pip")


def test_the_table_that_is_waited_for_is_the_one_that_the_benchmarks_print():
    assert newcomer.TABLE in Path(_plugin.__file__).read_text()
