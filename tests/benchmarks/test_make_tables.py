"""The benchmark tables: right ratios, markers kept, --check finds what is stale, bad files named."""

import importlib.util
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "benchmarks" / "make_tables.py"
spec = importlib.util.spec_from_file_location("make_tables", SCRIPT)
make_tables = importlib.util.module_from_spec(spec)
# dataclasses look their module up by name
sys.modules["make_tables"] = make_tables
spec.loader.exec_module(make_tables)

META = {
    "commit": "0123456789abcdef",
    "device": "Two | cores <x>",
    "date": "2026-11-21",
    "torch": "2.13.0",
    "triton": None,
    "driver": None,
    "threads": 2,
    "load_average": 0.3,
    "allocator": "warm",
}


def result(provider, median, **changes):
    entry = {
        "op": "modulate",
        "case": "(128,64,8,8)",
        "direction": "both",
        "dtype": "float32",
        "layout": "contiguous",
        "provider": provider,
        "median_ms": median,
        "p20_ms": median * 0.9,
        "p80_ms": median * 1.2,
    }
    return {**entry, **changes}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/performance.md"):
        (tmp_path / name).write_text(f"# above\n\n{make_tables.BEGIN}\nold\n{make_tables.END}\n\nbelow\n")
    return tmp_path


def put(root, results, name="cpu.json", meta=META):
    (root / "benchmarks" / "results" / name).write_text(json.dumps({"meta": meta, "results": results}))


def run(root, *options):
    return make_tables.main(["--root", str(root), *options])


def table_rows(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_ratios_are_baseline_over_ours_within_the_same_case(root):
    put(
        root,
        [
            result("eager", 10.0), result("torch.compile", 6.0), result("strucfast", 4.0), result("loop", 3.0),
            result("eager", 30.0, case="(128,64,16,16)"), result("strucfast", 6.0, case="(128,64,16,16)"),
            result("eager", 100.0, layout="channels_last"), result("strucfast", 20.0, layout="channels_last"),
            result("eager", 7.0, direction="forward"), result("strucfast", 2.0, direction="forward"),
        ],
    )  # fmt: skip
    assert run(root) == 0
    head, _, first, second = table_rows(root / "README.md")
    assert dict(zip(head, first)) == {
        "op": "modulate, forward + backward", "case": "(128,64,8,8) to (128,64,16,16) (2 cases)", "dtype": "float32",
        "layout": "contiguous", "over eager": "2.50x to 5.00x", "over torch.compile": "1.50x",
        "over others": "loop 0.75x",
    }  # fmt: skip
    assert second[3:] == ["channels_last", "5.00x", "–", "–"]
    long = table_rows(root / "docs" / "performance.md")
    assert len(long) == 2 + 4 and long[5][2] == "forward" and "3.50x" in long[5]


def test_other_baselines_memory_and_bandwidth_are_in_the_long_table(root):
    put(
        root,
        [
            result("loop", 9.0),
            result("eager", 3.0, extra_bytes=10e6),
            result("strucfast", 1.5, extra_bytes=2.5e6, gb_per_s=12.3),
        ],
    )
    assert run(root) == 0
    row = table_rows(root / "docs" / "performance.md")[2]
    assert row[-3:] == ["loop 6.00x", "2.5 (0.25 of eager)", "12"] and "1.35-1.8" in row


def test_only_what_is_between_the_markers_changes_and_a_second_run_changes_nothing(root):
    put(root, [result("eager", 10.0), result("strucfast", 4.0)])
    assert run(root) == 0
    text = (root / "README.md").read_text()
    assert text.startswith("# above\n\n" + make_tables.BEGIN) and text.endswith(make_tables.END + "\n\nbelow\n")
    assert "old" not in text and "Two \\| cores &lt;x>" in text
    assert run(root) == 0 and (root / "README.md").read_text() == text
    assert run(root, "--check") == 0


def test_check_names_the_stale_files_and_writes_nothing(root, capsys):
    put(root, [result("eager", 10.0), result("strucfast", 4.0)])
    assert run(root) == 0
    put(root, [result("eager", 10.0), result("strucfast", 5.0)])
    before = (root / "README.md").read_text()
    capsys.readouterr()
    assert run(root, "--check") == 1
    out = capsys.readouterr().out
    assert "README.md is out of date" in out and "docs/performance.md" in out and "docs/performance.svg" in out
    assert (root / "README.md").read_text() == before


def test_the_plot_is_xml_with_a_bar_for_every_ratio_and_goes_with_the_last_result(root):
    put(root, [result("eager", 10.0), result("torch.compile", 3.0), result("strucfast", 4.0)])
    assert run(root) == 0
    picture = root / "docs" / "performance.svg"
    texts = [element.text for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert "2.50x" in texts and "0.75x" in texts and "Two | cores <x>" in texts
    (root / "benchmarks" / "results" / "cpu.json").unlink()
    assert run(root, "--check") == 1 and run(root) == 0
    assert not picture.exists() and make_tables.EMPTY in (root / "README.md").read_text()


def test_two_devices_keep_to_themselves(root):
    put(root, [result("eager", 10.0), result("strucfast", 5.0)], "a.json")
    put(root, [result("eager", 30.0), result("triton", 5.0)], "b.json", {**META, "device": "B", "triton": "3.9"})
    assert run(root) == 0
    rows = table_rows(root / "README.md")
    assert "2.00x" in rows[2] and "6.00x" in rows[5] and rows[5][0].endswith("(triton)")


def test_the_readme_shows_what_users_see_and_bare_kernels_are_not_compared(root):
    put(
        root,
        [
            result("eager", 8.0), result("strucfast", 4.0), result("triton", 4.0), result("cuda", 5.0),
            result("eager", 3.0, direction="forward"), result("strucfast", 2.0, direction="forward"),
            result("cuda kernel", 1.0, direction="forward", gb_per_s=3210.4, share_of_copy=0.791),
            result("numpy", 90.0, op="render", direction="forward"),
            result("strucfast", 1.0, op="render", direction="forward"),
        ],
        meta={"device": "card", "date": "2026-11-21", "torch": "2.13.0"},
    )  # fmt: skip
    assert run(root) == 0
    readme = table_rows(root / "README.md")[2:]
    assert [row[0] for row in readme] == ["modulate, forward + backward", "render, forward"]
    assert readme[1][-1] == "numpy 90.00x"
    long = {(row[2], row[5]): row for row in table_rows(root / "docs" / "performance.md")[2:] if row[0] == "modulate"}
    assert long["forward", "cuda kernel"][8:] == ["–", "–", "–", "–", "3210 (79% of copy)"]
    assert long["both", "cuda"][8] == "1.60x" and ("forward", "strucfast") in long
    assert "**card** (2026-11-21, torch 2.13.0)" in (root / "README.md").read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "'meta'"),
        (json.dumps({"meta": {"commit": "x"}, "results": []}), "meta lacks device, date, torch"),
        (json.dumps({"meta": META, "results": [{"op": "modulate"}]}), "results[0] lacks case"),
        (json.dumps({"meta": META, "results": [result("eager", 0.0)]}), "median_ms must be a positive number"),
        (
            json.dumps({"meta": META, "results": [result("eager", 1.0, direction="sideways")]}),
            "direction must be one of",
        ),
        (
            json.dumps({"meta": META, "results": [result("eager", 1.0), result("eager", 2.0)]}),
            "results[1] repeats eager",
        ),
    ],
)
def test_a_bad_result_file_is_named_and_nothing_is_written(root, capsys, content, words):
    (root / "benchmarks" / "results" / "bad.json").write_text(content)
    assert run(root) == 2
    error = capsys.readouterr().err
    assert "bad.json" in error and words in error
    assert "old" in (root / "README.md").read_text()


def test_a_page_without_markers_is_named(root, capsys):
    (root / "README.md").write_text("no markers")
    assert run(root) == 2
    assert "README.md: expected one" in capsys.readouterr().err


def test_the_repositorys_own_tables_are_up_to_date():
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
