"""The benchmark tables: right ratios, markers kept, --check finds what is stale, bad files named."""

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import make_tables
from benchmarks.tables import pages

SCRIPT = Path(make_tables.__file__)

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


def put(root, results, name="cpu.json", meta=META, key="results"):
    path = root / "benchmarks" / "results" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"meta": meta, key: results}))


def run(root, *options):
    return make_tables.main(["--root", str(root), *options])


def table_rows(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def tables(path):
    """head -> rows, each as a dict, of every table of a page; tables with one head follow each other."""
    found, head = {}, None
    for line in path.read_text().splitlines():
        if not line.startswith("| "):
            head = None
            continue
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if head is None:
            head = tuple(cells)
        elif not cells[0].startswith("---"):
            found.setdefault(head, []).append(dict(zip(head, cells)))
    return found


def table_with(path, *columns):
    (rows,) = [rows for head, rows in tables(path).items() if set(columns) <= set(head)]
    return rows


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
    (line,) = table_with(root / "README.md", "sizes")
    assert line == {
        "op": "modulate, forward + backward", "sizes": "(128,64,8,8) to (128,64,16,16) (2 cases)",
        "over eager": "2.50x to 5.00x", "over torch.compile": "1.50x", "over others": "loop 0.75x",
    }  # fmt: skip
    page = root / "docs" / "performance.md"
    first, second = [row for head, rows in tables(page).items() if len(head) == 7 for row in rows]
    assert (first["layout"], first["over eager"]) == ("contiguous", "2.50x to 5.00x")
    assert (second["layout"], second["over eager"], second["over others"]) == ("channels_last", "5.00x", "–")
    every = table_with(page, "p20-p80 ms")
    assert len(every) == 4 and every[3]["direction"] == "forward" and every[3]["over eager"] == "3.50x"


def test_other_baselines_memory_and_throughput_are_in_the_folded_table(root):
    rate = {"gb_per_s": 12.3, "share_of_copy": 0.5, "gexp_per_s": 0.97, "share_of_exp": 0.246}
    put(
        root,
        [
            result("loop", 9.0),
            result("eager", 3.0, extra_bytes=10e6),
            result("strucfast", 1.5, extra_bytes=2.5e6, **rate),
        ],
    )
    assert run(root) == 0
    page = root / "docs" / "performance.md"
    (row,) = table_with(page, "p20-p80 ms")
    assert (row["over others"], row["extra MB"], row["p20-p80 ms"]) == ("loop 6.00x", "2.5 (0.25 of eager)", "1.35-1.8")
    assert (row["GB/s"], row["1e9 exp/s"]) == ("12 (50% of copy)", "0.97 (25% of exp)")
    # GitHub renders Markdown in a folded part only after an empty line.
    assert "<summary>Every case of Two | cores &lt;x&gt; (1 case)</summary>\n\n| op" in page.read_text()


def test_ceilings_are_said_above_the_table(root):
    meta = {**META, "ceilings": {"copy_gb_per_s": 35.24, "exp_per_s": 4.12e9, "threads": 2}}
    put(root, [result("eager", 10.0), result("strucfast", 4.0)], meta=meta)
    assert run(root) == 0
    for page in (root / "README.md", root / "docs" / "performance.md"):
        assert "allocator warm; ceilings: copy 35 GB/s, exp 4.1e9/s" in page.read_text()


def test_every_case_below_the_floor_is_listed(root):
    def group(case, eager, compiled, **changes):
        times = {"eager": eager, "torch.compile": compiled, "strucfast": 1.0}
        return [result(name, ms, case=case, **changes) for name, ms in times.items()]

    rows = group("a", 0.951, 2.0) + group("b", 2.0, 0.949) + group("c", 0.5, 2.0, direction="backward")
    # A bare kernel, a rival of another kind and a point of a series do not count.
    rows += [result("cuda kernel", 9.0, case="a"), result("bmm", 0.1, case="a")]
    # Eager in another layout does.
    rows += [*group("d", 2.0, 2.0), result("channels_last", 0.94, case="d")]
    rows += group("batch 32", 0.1, 0.1, axis="batch", value=32)
    put(root, rows)
    assert run(root) == 0
    page = root / "docs" / "performance.md"
    assert "Below 0.95x of eager (in either layout) or torch.compile: 3 of 4 cases." in page.read_text()
    ratios = ("over eager", "over channels_last", "over torch.compile")
    short = next(rows for head, rows in tables(page).items() if head[-3:] == ratios)
    assert [(row["case"], row["direction"], *(row[name] for name in ratios)) for row in short] == [
        ("b", "both", "2.000x", "–", "0.949x"),
        ("c", "backward", "0.500x", "–", "2.000x"),
        ("d", "both", "2.000x", "0.940x", "2.000x"),
    ]
    assert "3 of 4 cases. [Every case and every machine](docs/performance.md)" in (root / "README.md").read_text()
    put(root, group("a", 0.951, 2.0))
    assert run(root) == 0 and "torch.compile: none of 1 cases." in page.read_text()


def test_scaling_rows_are_a_table_and_a_plot_of_their_own(root):
    cost = {
        "strucfast": lambda n: 1e-3 * n,
        "eager": lambda n: 0.008 + 1e-5 * n**2,
        "torch.compile": lambda n: 1e-4 * n,
    }
    rows = [
        result(name, cost[name](n), op="mmd", case=f"batch {n}, D 10", axis="batch", value=n, extra_bytes=n * 1000)
        for name in cost
        for n in (32, 128, 512, 2048)
    ]
    put(root, [result("eager", 10.0), result("strucfast", 4.0), *rows])
    assert run(root) == 0
    page = root / "docs" / "performance.md"
    (row,) = table_with(page, "slope")
    assert (row["op"], row["over"], row["at"]) == ("mmd", "batch 32 to 2048", "D 10, both, float32, contiguous")
    assert (row["ms at the first"], row["ms at the last"]) == ("0.032", "2.05")
    assert row["slope"] == "1.00" and float(row["slope of eager"]) == pytest.approx(2.0, abs=0.05)
    assert row["extra MB at the last (slope)"] == row["of eager"] == "2.05 (1.00)"
    assert (row["wins over eager from"], row["over compile from"]) == ("128", "no size measured")
    assert [row["op"] for row in table_with(page, "p20-p80 ms")] == ["modulate"]
    svg = "{http://www.w3.org/2000/svg}"
    picture = ElementTree.parse(root / "docs" / "scaling.svg")
    lines = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in picture.iter(f"{svg}polyline")
    ]
    assert len(lines) == 3 and "](scaling.svg)" in page.read_text()
    # On log-log axes linear cost is a straight line, and dearer is higher (smaller y).
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = lines[-1]
    assert (y1 - y0) / (x1 - x0) == pytest.approx((y3 - y2) / (x3 - x2), rel=0.02) and y3 < y0
    texts = [element.text for element in picture.iter(f"{svg}text")]
    assert "mmd, both, over batch" in texts and {"strucfast", "eager", "torch.compile", "32", "2048"} <= set(texts)


def test_default_allocator_beside_the_warm_one(root):
    put(root, [result("eager", 10.0), result("torch.compile", 6.0), result("strucfast", 4.0)])
    cold = [result("eager", 40.0), result("torch.compile", 22.0), result("strucfast", 10.0)]
    cold += [result("eager", 9.0, case="cold only"), result("strucfast", 10.0, case="cold only")]
    put(root, cold, "cpu-default-allocator.json", {**META, "allocator": "default"})
    assert run(root) == 0
    page = root / "docs" / "performance.md"
    head, rows = next((head, rows) for head, rows in tables(page).items() if "ms, default" in head)
    text = [line for line in page.read_text().splitlines() if line.startswith("| modulate | (128,64,8,8) | both")]
    assert any(line.endswith("| 4 | 10 | 2.50x | 4.00x | 1.50x | 2.20x |") for line in text)
    assert len(head) == 11 and rows[1]["case"] == "cold only" and rows[1]["ms, warm"] == "–"
    assert "with the default allocator: 1 of 2 cases." in page.read_text()
    assert "22" not in (root / "README.md").read_text().replace("2026-11-21", "")


def test_profiles_say_where_a_step_goes(root):
    def profile(provider, step, **parts):
        shares = [{"name": name, "ms": ms, "share": ms / step} for name, ms in parts.items()]
        shared = {"model": "sae-12", "dtype": "bfloat16", "layout": "channels_last"}
        return shared | {"provider": provider, "step_ms": step, "parts": shares}

    found = [
        profile("strucfast", 500, convolution=300, epilogue=100),
        profile("eager", 1000, convolution=400, mish=250),
    ]
    put(root, found, "profiles/cpu.json", {"device": "D", "date": "2026-11-21"}, "profiles")
    assert run(root) == 0
    rows = table_with(root / "docs" / "performance.md", "sae-12, bfloat16")
    columns = ("sae-12, bfloat16", "strucfast (channels_last)", "eager (channels_last)")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("convolution", "300 ms (60%)", "400 ms (40%)"),
        ("epilogue", "100 ms (20%)", "–"),
        ("mish", "–", "250 ms (25%)"),
        ("whole step", "500 ms", "1000 ms"),
    ]


def test_a_newcomers_first_minutes(root):
    steps = [
        {"path": path, "name": name, "seconds": seconds}
        for path, name, seconds in [("demo", "clone", 2.34), ("demo", "demo", 309.9), ("bench", "clone", 58.7)]
    ]
    put(root, steps, "newcomer/cpu.json", {"device": "D", "date": "2026-11-21"}, "steps")
    assert run(root) == 0
    for page in (root / "README.md", root / "docs" / "performance.md"):
        text = page.read_text()
        assert "- Clone to demo report: **5 min 12 s** (clone 2.3 s, demo 5 min 10 s; D, 2026-11-21)." in text
        assert "- Clone to first benchmark table: **59 s** (clone 59 s; D, 2026-11-21)." in text


def test_whole_models_come_first_and_a_model_has_a_line(root):
    steps = [
        result(provider, ms, op="training_step", direction="step", case=f"{model} 64x64x3, N 128", dtype=dtype)
        for model, dtype, ours in [("sae-12", "float32", 1.0), ("sae-12", "bfloat16", 2.0), ("vlae-12", "float32", 3.0)]
        for provider, ms in [("strucfast", ours), ("eager", 6.0)]
    ]
    put(root, [result("eager", 10.0), result("strucfast", 4.0), *steps])
    assert run(root) == 0
    lines = table_with(root / "README.md", "sizes")
    assert [(line["op"], line["over eager"]) for line in lines] == [
        ("sae-12 training step", "3.00x to 6.00x"),
        ("vlae-12 training step", "2.00x"),
        ("modulate, forward + backward", "2.50x"),
    ]


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
    assert not (root / "docs" / "scaling.svg").exists()
    (root / "benchmarks" / "results" / "cpu.json").unlink()
    assert run(root, "--check") == 1 and run(root) == 0
    assert not picture.exists() and pages.EMPTY in (root / "README.md").read_text()


def test_the_readme_shows_the_newest_machine_of_each_kind_and_the_page_all(root):
    def pair(ms, provider="strucfast"):
        return [result("eager", ms), result(provider, 5.0)]

    put(root, pair(10.0), "a.json", {**META, "device": "A", "date": "2026-11-20"})
    put(root, pair(30.0), "b.json", {**META, "device": "B", "date": "2026-11-21"})
    put(root, [*pair(45.0), result("numpy", 1.0, op="hsic"), result("strucfast", 1.0, op="hsic")], "c.json",
        {**META, "device": "C", "date": "2026-11-21"})  # fmt: skip
    put(root, pair(60.0, "triton"), "d.json", {**META, "device": "D", "date": "2026-11-19", "driver": "580.1"})
    assert run(root) == 0
    lines = table_with(root / "README.md", "sizes")
    assert [line["over eager"] for line in lines] == ["9.00x", "–", "12.00x"] and lines[2]["op"].endswith("(triton)")
    page = (root / "docs" / "performance.md").read_text()
    assert math.inf > page.index("### C") < page.index("### B") < page.index("### A") < page.index("### D")


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
        meta={"device": "card", "date": "2026-11-21", "torch": "2.13.0", "copy_gb_per_s": 4058.7},
    )  # fmt: skip
    assert run(root) == 0
    lines = table_with(root / "README.md", "sizes")
    assert [line["op"] for line in lines] == ["modulate, forward + backward", "render, forward"]
    assert lines[1]["over others"] == "numpy 90.00x"
    every = table_with(root / "docs" / "performance.md", "p20-p80 ms")
    found = {(row["direction"], row["provider"]): row for row in every if row["op"] == "modulate"}
    kernel = found["forward", "cuda kernel"]
    assert kernel["over eager"] == kernel["over others"] == "–" and kernel["GB/s"] == "3210 (79% of copy)"
    assert found["both", "cuda"]["over eager"] == "1.60x" and ("forward", "strucfast") in found
    assert "**card** (2026-11-21, torch 2.13.0; ceilings: copy 4059 GB/s)" in (root / "README.md").read_text()


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
        (
            json.dumps({"meta": META, "results": [result("strucfast", 1.0, gb_per_s="fast")]}),
            "results[0]: gb_per_s must be a number",
        ),
        (
            json.dumps({"meta": META, "results": [result("strucfast", 1.0, axis="batch")]}),
            "value must be a positive number, got None",
        ),
        (
            json.dumps({"meta": {**META, "ceilings": {"copy_gb_per_s": 0, "exp_per_s": 1.0}}, "results": []}),
            "meta.ceilings: copy_gb_per_s must be a positive number, got 0",
        ),
        (json.dumps({"meta": {**META, "ceilings": 3}, "results": []}), "meta.ceilings must be an object, got 3"),
    ],
)
def test_a_bad_result_file_is_named_and_nothing_is_written(root, capsys, content, words):
    (root / "benchmarks" / "results" / "bad.json").write_text(content)
    assert run(root) == 2
    error = capsys.readouterr().err
    assert "bad.json" in error and words in error
    assert "old" in (root / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "key", "entries", "words"),
    [
        ("profiles/p.json", "results", [], "expected an object with 'meta' (an object) and 'profiles'"),
        ("profiles/p.json", "profiles", [{"model": "sae-12"}], "profiles[0] lacks dtype"),
        (
            "profiles/p.json",
            "profiles",
            [
                dict.fromkeys(("model", "dtype", "layout", "provider"), "x")
                | {"step_ms": 1, "parts": [{"name": "conv"}]}
            ],
            "profiles[0].parts[0] lacks ms, share",
        ),
        ("newcomer/n.json", "steps", [{"path": "demo", "name": "clone", "seconds": -1}], "steps[0]: seconds must be"),
        ("cpu-default-allocator.json", "results", [], "meta.allocator must be 'default' in this file, got 'warm'"),
    ],
)
def test_a_bad_file_of_another_kind_is_named(root, capsys, name, key, entries, words):
    put(root, entries, name, key=key)
    assert run(root) == 2
    error = capsys.readouterr().err
    assert Path(name).name in error and words in error
    assert "old" in (root / "README.md").read_text()


def test_figures_of_the_default_allocator_alone_are_refused(root, capsys):
    put(root, [], "cpu-default-allocator.json", {**META, "allocator": "default"})
    assert run(root) == 2
    assert "cpu-default-allocator.json: there is no cpu.json" in capsys.readouterr().err


def test_a_page_without_markers_is_named(root, capsys):
    (root / "README.md").write_text("no markers")
    assert run(root) == 2
    assert "README.md: expected one" in capsys.readouterr().err


def test_the_repositorys_own_tables_are_up_to_date():
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
