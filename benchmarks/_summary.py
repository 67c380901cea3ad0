"""What a run prints at its end: every comparison's ratios, what is below eager or torch.compile, the groups' count."""

from benchmarks import _results

# Below this, a ratio is a loss and not noise.
FLOOR = 0.95
# "channels_last" is eager in another layout: one line away for who has eager.
RIVALS = ("eager", "channels_last", "torch.compile")


def ratios(rows: list[dict]) -> dict[str, float]:
    """How many times as long each provider that is not ours takes, in the rows of one comparison."""
    mine = _results.ours(rows)["median_ms"]
    return {row["provider"]: row["median_ms"] / mine for row in rows if not _results.is_ours(row["provider"])}


def table(comparisons: list[list[dict]]) -> list[str]:
    op, case, direction, layout = (
        max([4, *(len(_text(rows[0], name)) for rows in comparisons)]) for name in ("op", "case", "direction", "layout")
    )
    lines = [
        f"{'op':<{op}} {'case':<{case}} {'direction':<{direction}} {'dtype':<8} {'layout':<{layout}} {'ms':>9}"
        f" {'of copy':>7} {'of exp':>6}  times over"
    ]
    for rows in comparisons:
        mine = _results.ours(rows)
        copy, exp = (f"{mine[name]:.0%}" if name in mine else "" for name in ("share_of_copy", "share_of_exp"))
        found = [f"{name} {ratio:.2f}x" for name, ratio in ratios(rows).items()]
        # Our own others (bins, backends) are said in milliseconds: they may have another meaning.
        found += [
            f"({r['provider']} {r['median_ms']:.3g} ms)"
            for r in rows
            if _results.is_ours(r["provider"]) and r is not mine
        ]
        lines.append(
            f"{mine['op']:<{op}} {_text(mine, 'case'):<{case}} {mine['direction']:<{direction}} {mine['dtype']:<8}"
            f" {mine['layout']:<{layout}} {mine['median_ms']:>9.3f} {copy:>7} {exp:>6}  {'  '.join(found)}"
        )
    return lines


def _text(row: dict, name: str) -> str:
    return row[name] + (f", {row['allocator']} allocator" if name == "case" and "allocator" in row else "")


def losses(comparisons: list[list[dict]]) -> list[str]:
    """One line per comparison in which eager (in either layout) or torch.compile is faster by more than noise."""
    found = []
    for rows in comparisons:
        for name, ratio in ratios(rows).items():
            if name in RIVALS and ratio < FLOOR:
                mine = _results.ours(rows)
                where = " ".join(_text(mine, key) for key in ("op", "case", "direction", "dtype", "layout"))
                found.append(f"below {FLOOR}x: {where}: {name} {ratio:.2f}x")
    return found
