"""Turns benchmarks/results/*.json into the tables of README.md and docs/performance.md and one plot.

    python benchmarks/make_tables.py            rewrite what is between the markers, and docs/performance.svg
    python benchmarks/make_tables.py --check    exit 1 and name the files that are out of date; write nothing

The schema of a result file is in benchmarks/results/README.md. A ratio is the median time of a baseline over ours, both
from the same file and the same op, case, direction, dtype and layout.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
EMPTY = "No measurement has been committed yet.\n"
META = ("device", "date", "torch")
OPTIONAL_META = ("commit", "triton", "driver", "threads", "load_average", "allocator")
KEY = ("op", "case", "direction", "dtype", "layout")
DIRECTIONS = ("forward", "backward", "both", "step")
OURS = ("strucfast", "cpp", "triton", "cuda")
EAGER, COMPILED = ("eager",), ("torch.compile", "compile")


class BadResults(Exception):
    """A result file or a page that cannot be used; the text names the file and the field."""


@dataclass
class Row:
    """One measured case: our time beside every other provider's."""

    key: tuple[str, ...]
    provider: str
    ours: dict
    others: dict[str, dict] = field(default_factory=dict)

    def baseline(self, names: tuple[str, ...]) -> float | None:
        return next((self.others[name]["median_ms"] for name in names if name in self.others), None)

    def ratio(self, names: tuple[str, ...]) -> float | None:
        baseline = self.baseline(names)
        return None if baseline is None else baseline / self.ours["median_ms"]


def is_ours(provider: str) -> bool:
    """ "strucfast", a backend's name, or one of them with more behind it ("strucfast, CUDA graph", "cuda kernel")."""
    return re.split("[ ,]", provider)[0] in OURS


def is_bare_kernel(provider: str) -> bool:
    """Timed without autograd and launches, so it is compared with the copy bandwidth and with nothing else."""
    return is_ours(provider) and provider.endswith(" kernel")


def load(path: Path) -> tuple[dict, list[Row]]:
    """One result file as (meta, rows in the order of first mention)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadResults(f"{path.name}: cannot be read as JSON: {error}") from error
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("meta"), dict)
        or not isinstance(content.get("results"), list)
    ):
        raise BadResults(f"{path.name}: expected an object with 'meta' (an object) and 'results' (a list)")
    missing = [name for name in META if name not in content["meta"]]
    if missing:
        raise BadResults(f"{path.name}: meta lacks {', '.join(missing)}")
    groups: dict[tuple[str, ...], dict[str, dict]] = {}
    for place, result in enumerate(content["results"]):
        where = f"{path.name}: results[{place}]"
        missing = [name for name in (*KEY, "provider", "median_ms", "p20_ms", "p80_ms") if name not in result]
        if missing:
            raise BadResults(f"{where} lacks {', '.join(missing)}")
        if result["direction"] not in DIRECTIONS:
            raise BadResults(f"{where}: direction must be one of {', '.join(DIRECTIONS)}, got {result['direction']!r}")
        median = result["median_ms"]
        if (
            isinstance(median, bool)
            or not isinstance(median, (int, float))
            or not (math.isfinite(median) and median > 0)
        ):
            raise BadResults(f"{where}: median_ms must be a positive number, got {median!r}")
        group = groups.setdefault(tuple(str(result[name]) for name in KEY), {})
        if result["provider"] in group:
            raise BadResults(
                f"{where} repeats {result['provider']} for {' '.join(map(str, (result[name] for name in KEY)))}"
            )
        group[result["provider"]] = result
    rows = []
    for key, group in groups.items():
        others = {name: result for name, result in group.items() if not is_ours(name)}
        for name, result in group.items():
            if is_ours(name):
                rows.append(Row(key, name, result, {} if is_bare_kernel(name) else others))
    return {**dict.fromkeys(OPTIONAL_META), **content["meta"]}, rows


def milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}x"


def cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def heading(meta: dict) -> str:
    facts = [f"commit {str(meta['commit'])[:10]}"] if meta["commit"] else []
    facts += [str(meta["date"]), f"torch {meta['torch']}"]
    facts += [f"{name} {meta[name]}" for name in ("triton", "driver") if meta[name]]
    facts += [f"{meta['threads']} threads"] if meta["threads"] else []
    facts += [f"load average {meta['load_average']}"] if meta["load_average"] is not None else []
    facts += [f"allocator {meta['allocator']}"] if meta["allocator"] else []
    return f"**{cell(meta['device'])}** ({cell(', '.join(facts))})\n"


def markdown_table(head: list[str], rows: list[list[str]], numbers_from: int) -> str:
    rule = ["---" if place < numbers_from else "---:" for place in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"


def short_table(rows: list[Row]) -> str:
    """README: forward and backward together and whole steps, one line an op, dtype and layout with the range of ratios.

    Every single case and direction is in docs/performance.md.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in headlines(rows):
        op, _, direction, dtype, layout = row.key
        groups.setdefault((op, direction, dtype, layout, row.provider), []).append(row)
    body = []
    for (op, direction, dtype, layout, provider), members in groups.items():
        name = op + {"both": ", forward + backward", "step": ""}.get(direction, f", {direction}")
        if provider != "strucfast":
            name += f" ({provider})"
        cases = [row.key[1] for row in members]
        case = cases[0] if len(cases) == 1 else f"{cases[0]} to {cases[-1]} ({len(cases)} cases)"
        others = {other: None for row in members for other in row.others if other not in EAGER + COMPILED}
        beyond = ", ".join(f"{other} {span([row.ratio((other,)) for row in members])}" for other in others)
        body.append(
            [cell(part) for part in (name, case, dtype, layout)]
            + [span([row.ratio(EAGER) for row in members]), span([row.ratio(COMPILED) for row in members])]
            + [cell(beyond) or "–"]
        )
    head = ["op", "case", "dtype", "layout", "over eager", "over torch.compile", "over others"]
    return markdown_table(head, body, 4)


def headlines(rows: list[Row]) -> list[Row]:
    """What users see of each op: "strucfast" itself, forward and backward together (or steps) where there is that."""
    kept = []
    for op in dict.fromkeys(row.key[0] for row in rows):
        mine = [row for row in rows if row.key[0] == op and not is_bare_kernel(row.provider)]
        mine = [row for row in mine if row.provider.startswith("strucfast")] or mine
        kept += [row for row in mine if row.key[2] in ("both", "step")] or mine
    return kept


def span(ratios: list[float | None]) -> str:
    """The least and the greatest of the ratios that are known."""
    known = sorted(ratio for ratio in ratios if ratio is not None)
    if not known:
        return "–"
    return times(known[0]) if len(known) == 1 else f"{times(known[0])} to {times(known[-1])}"


def memory(row: Row) -> str:
    """Megabytes allocated by one call beyond its inputs, and as a share of eager's where both were measured."""
    ours = row.ours.get("extra_bytes")
    if ours is None:
        return "–"
    eager = row.others.get("eager", {}).get("extra_bytes")
    return f"{ours / 1e6:.1f}" + (f" ({ours / eager:.2f} of eager)" if eager else "")


def long_table(rows: list[Row]) -> str:
    """docs/performance.md: every case with its spread, memory and every other baseline."""
    head = [
        *KEY,
        "provider",
        "median ms",
        "p20-p80 ms",
        "over eager",
        "over compile",
        "over others",
        "extra MB",
        "GB/s",
    ]
    body = []
    for row in rows:
        result = row.ours
        others = [
            f"{name} {times(other['median_ms'] / result['median_ms'])}"
            for name, other in row.others.items()
            if name not in EAGER + COMPILED
        ]
        body.append(
            [cell(part) for part in (*row.key, row.provider)]
            + [milliseconds(result["median_ms"]), f"{milliseconds(result['p20_ms'])}-{milliseconds(result['p80_ms'])}"]
            + [times(row.ratio(EAGER)), times(row.ratio(COMPILED)), cell(", ".join(others)) or "–"]
            + [memory(row), bandwidth(result)]
        )
    return markdown_table(head, body, 6)


def bandwidth(result: dict) -> str:
    rate, share = result.get("gb_per_s"), result.get("share_of_copy")
    if rate is None:
        return "–"
    return f"{rate:.0f}" + (f" ({100 * share:.0f}% of copy)" if share is not None else "")


def plot(files: list[tuple[dict, list[Row]]]) -> str:
    """Bars of the ratios over eager and torch.compile on a log axis, as an SVG that reads on light and dark pages."""
    bars = []
    for meta, rows in files:
        for row in headlines(rows):
            ratios = [(row.ratio(EAGER), "#4f63d9"), (row.ratio(COMPILED), "#e2711d")]
            if any(ratio is not None for ratio, _ in ratios):
                op, case, _, dtype, layout = row.key
                mark = "" if row.provider == "strucfast" else f" {row.provider}"
                bars.append((f"{op}{mark} {case} {dtype} {layout}", str(meta["device"]), ratios))
    known = [ratio for _, _, ratios in bars for ratio, _ in ratios if ratio is not None]
    if not known:
        return ""
    low, high = math.log2(min(0.5, *known)), math.log2(max(2.0, *known))
    left, width, line, top = 400, 520, 34, 64

    def place(ratio: float) -> float:
        return left + width * (math.log2(ratio) - low) / (high - low)

    height = top + line * len(bars) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img" '
        'aria-label="Speed of strucfast over eager PyTorch and torch.compile">',
        f'<rect width="{left + width + 70}" height="{height}" rx="10" fill="#ffffff"/>',
        '<text x="16" y="26" font-size="15" font-weight="600" fill="#15181e">Baseline time / strucfast time</text>',
        '<rect x="16" y="38" width="12" height="8" fill="#4f63d9"/><text x="33" y="46" fill="#444">over eager</text>'
        '<rect x="116" y="38" width="12" height="8" fill="#e2711d"/>'
        '<text x="133" y="46" fill="#444">over torch.compile</text>',
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        x, stroke = place(2.0**power), "#444" if power == 0 else "#ddd"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{height - 12}" stroke="{stroke}"/>')
        parts.append(f'<text x="{x:.1f}" y="{top - 12}" text-anchor="middle" fill="#666">{2.0**power:g}x</text>')
    for number, (name, device, ratios) in enumerate(bars):
        y = top + line * number
        parts.append(f'<text x="{left - 10}" y="{y + 13}" text-anchor="end" fill="#15181e">{html.escape(name)}</text>')
        parts.append(
            f'<text x="{left - 10}" y="{y + 26}" text-anchor="end" font-size="10" fill="#666">'
            f"{html.escape(device)}</text>"
        )
        for slot, (ratio, colour) in enumerate(ratios):
            if ratio is not None:
                start, end = sorted((place(1.0), place(ratio)))
                parts.append(
                    f'<rect x="{start:.1f}" y="{y + 3 + 12 * slot}" width="{end - start:.1f}" height="10" rx="2" '
                    f'fill="{colour}"/>'
                    f'<text x="{end + 5:.1f}" y="{y + 12 + 12 * slot}" fill="#15181e">{ratio:.2f}x</text>'
                )
    return "\n".join([*parts, "</svg>"]) + "\n"


def replace_region(path: Path, content: str) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadResults(f"{path.name}: cannot be read: {error.strerror}") from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise BadResults(f"{path.name}: expected one {BEGIN} and, after it, one {END}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}{END}{rest.split(END)[1]}"


def make(root: Path) -> dict[Path, str | None]:
    """What every generated file should hold; None for one that should not exist."""
    files = [load(path) for path in sorted((root / "benchmarks" / "results").glob("*.json"))]
    files = [(meta, rows) for meta, rows in files if rows]
    short = "\n".join(f"{heading(meta)}\n{short_table(rows)}" for meta, rows in files) or EMPTY
    long = "\n".join(f"{heading(meta)}\n{long_table(rows)}" for meta, rows in files) or EMPTY
    picture = plot(files)
    if picture:
        long += "\n![Ratios over eager and torch.compile](performance.svg)\n"
    readme, page = root / "README.md", root / "docs" / "performance.md"
    return {
        readme: replace_region(readme, short),
        page: replace_region(page, long),
        root / "docs" / "performance.svg": picture or None,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say which files are out of date; exit 1 if any")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parents[1], help="the repository (default: this one)"
    )
    options = parser.parse_args(arguments)
    try:
        wanted = make(options.root)
    except BadResults as error:
        print(f"make_tables: {error}", file=sys.stderr)
        return 2
    stale = [
        path for path, text in wanted.items() if (path.read_text(encoding="utf-8") if path.exists() else None) != text
    ]
    for path in stale:
        if options.check:
            print(f"make_tables: {path.relative_to(options.root)} is out of date; run python benchmarks/make_tables.py")
        elif wanted[path] is None:
            path.unlink()
        else:
            path.write_text(wanted[path], encoding="utf-8")
            print(f"make_tables: wrote {path.relative_to(options.root)}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
