"""Turns benchmarks/results/**/*.json into the tables of README.md and docs/performance.md and their plots.

    python benchmarks/make_tables.py            rewrite what is between the markers, and the plots in docs/
    python benchmarks/make_tables.py --check    exit 1 and name the files that are out of date; write nothing

The schema of a result file is in benchmarks/results/README.md. A ratio is the median time of a baseline over ours, both
from the same file and the same op, case, direction, dtype and layout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.tables import pages, plots, results  # noqa: E402
from benchmarks.tables.results import BadResults  # noqa: E402

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
PICTURES = {
    "performance.svg": "Ratios over eager and torch.compile",
    "scaling.svg": "Time by size, a panel a series",
}


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
    """Every generated file and its content (None: it should not exist)."""
    folder, docs = root / "benchmarks" / "results", root / "docs"
    machines = results.machines(folder)
    profiles, newcomers = results.profiles(folder / "profiles"), results.newcomers(folder / "newcomer")
    # The plots show the newest machine; every case of the others is in the tables.
    newest = results.newest(machines)
    drawn = {"performance.svg": plots.ratios(newest), "scaling.svg": plots.growth(newest)}
    shown = {name: PICTURES[name] for name, picture in drawn.items() if picture}
    readme, page = root / "README.md", docs / "performance.md"
    return {
        readme: replace_region(readme, pages.readme(machines, newcomers)),
        page: replace_region(page, pages.performance(machines, profiles, newcomers, shown)),
        **{docs / name: picture or None for name, picture in drawn.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say which files are out of date; exit 1 if any")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
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
