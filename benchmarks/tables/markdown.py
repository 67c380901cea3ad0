"""Pieces of Markdown: cells, tables, folded parts, and figures as people read them."""

from __future__ import annotations

import html
from collections.abc import Sequence


def cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int) -> str:
    rule = ["---" if place < numbers_from else "---:" for place in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"


def folded(summary: str, content: str) -> str:
    """Shown on a click. Markdown inside needs the empty lines."""
    return f"<details>\n<summary>{html.escape(summary, quote=False)}</summary>\n\n{content}\n</details>\n"


def milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float | None, digits: int = 2) -> str:
    return "–" if ratio is None else f"{ratio:.{digits}f}x"


def span(ratios: Sequence[float | None]) -> str:
    """The least and the greatest of the ratios that are known."""
    known = sorted(ratio for ratio in ratios if ratio is not None)
    if not known:
        return "–"
    return times(known[0]) if times(known[0]) == times(known[-1]) else f"{times(known[0])} to {times(known[-1])}"


def duration(seconds: float) -> str:
    """ "8.4 s", "45 s" or "5 min 12 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    return f"{whole // 60} min {whole % 60} s"


def rate(value: float | None, share: float | None = None, of: str = "") -> str:
    """A throughput and its share of a ceiling."""
    if value is None:
        return "–"
    return (f"{value:.0f}" if value >= 10 else f"{value:.2g}") + (f" ({100 * share:.0f}% of {of})" if share else "")
