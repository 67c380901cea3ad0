"""How cost grows: slopes and crossing points of the rows that carry an ``axis`` and a ``value``.

A series is what differs in the value alone: one op, axis, direction, dtype, layout, and the sizes that stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

OURS = "strucfast"
# Slopes are those of the last sizes: small ones show the cost of a call instead.
TAIL = 32.0
# A ratio above this is no loss: two runs of one case differ by as much.
NOISE = 0.95


def slope(sizes: Iterable[float], costs: Iterable[float]) -> float | None:
    """Exponent p of ``cost ~ size**p``: least squares in log-log over the sizes within ``TAIL`` of the largest.

    Where only the largest lies there, the one before it counts as well; None for fewer than two sizes.
    """
    points = sorted(zip(sizes, costs, strict=True))
    if len(points) < 2:
        return None
    tail = [point for point in points if point[0] * TAIL >= points[-1][0]]
    tail = tail if len(tail) > 1 else points[-2:]
    x, y = ([math.log(part) for part in parts] for parts in zip(*tail))
    centre, level = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - centre) ** 2 for a in x)
    if spread == 0.0:
        raise ValueError(f"slope: expected different sizes, got {points[-1][0]:g} {len(tail)} times")
    return sum((a - centre) * (b - level) for a, b in zip(x, y)) / spread


@dataclass
class Series:
    """Rows of every provider over the sizes of one axis."""

    op: str
    axis: str
    direction: str
    dtype: str
    layout: str
    # The sizes that stay the same, as the case states them.
    fixed: str
    # provider -> value -> row
    rows: dict[str, dict[float, dict]] = field(default_factory=dict)

    @property
    def values(self) -> list[float]:
        return sorted({value for points in self.rows.values() for value in points})

    @property
    def rivals(self) -> list[str]:
        return [provider for provider in self.rows if provider != OURS]

    def slope(self, provider: str, quantity: str = "median_ms") -> float | None:
        """Exponent of the time, or of another quantity such as ``extra_bytes``; None where it cannot be known."""
        points = {v: row[quantity] for v, row in self.rows.get(provider, {}).items() if row.get(quantity)}
        return slope(points.keys(), points.values())

    def shared(self, rival: str) -> list[float]:
        """The values at which both were measured."""
        return sorted(self.rows.get(OURS, {}).keys() & self.rows.get(rival, {}).keys())

    def ratio(self, rival: str, value: float, quantity: str = "median_ms") -> float:
        """How many times the rival takes what ours takes."""
        return self.rows[rival][value][quantity] / self.rows[OURS][value][quantity]

    def crossing(self, rival: str) -> float | None:
        """The smallest value at which, and at every larger one measured, ours does not lose; None if there is none."""
        found = None
        for value in reversed(self.shared(rival)):
            if self.ratio(rival, value) < NOISE:
                break
            found = value
        return found

    def wins_from(self, rival: str) -> str:
        """The crossing in words: "every size", a value, where ours wins but not to the end, "no size measured".

        "–" for a rival that was not timed beside ours.
        """
        shared = self.shared(rival)
        if not shared:
            return "–"
        crossing = self.crossing(rival)
        if crossing is not None:
            return "every size" if crossing == shared[0] else f"{crossing:g}"
        won = [f"{value:g}" for value in shared if self.ratio(rival, value) >= NOISE]
        return f"only at {', '.join(won)}" if won else "no size measured"


def series_of(rows: Iterable[Mapping]) -> list[Series]:
    """The series among the rows, in the order of first mention; rows without an axis are left aside.

    Raises:
        ValueError: a value is no positive number, or a provider has two rows for one value.
    """
    found: dict[tuple[str, ...], Series] = {}
    for row in rows:
        if "axis" not in row:
            continue
        axis, value, provider = row["axis"], row.get("value"), row["provider"]
        where = f"{row['op']} {row['case']} {row['direction']} {provider}"
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{where}: value must be a positive number, got {value!r}")
        fixed = row["case"].replace(f"{axis} {value}", "").strip(" ,")
        key = (row["op"], axis, row["direction"], row["dtype"], row["layout"], fixed)
        points = found.setdefault(key, Series(*key)).rows.setdefault(provider, {})
        if value in points:
            raise ValueError(f"{where} repeats {axis} {value:g}")
        points[value] = dict(row)
    return list(found.values())


def exponent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def report(rows: Iterable[Mapping]) -> list[str]:
    """One line a series for the terminal; nothing where no row has an axis."""
    found = series_of(rows)
    if not found:
        return []
    head = "others: slope, ratio at the ends, ours wins from"
    lines = [f"{'op':<20} {'over':<22} {'direction':<9} {'slope':>6}   {head}"]
    for series in found:
        values = series.values
        over = f"{series.axis} {values[0]:g} to {values[-1]:g}"
        line = f"{series.op:<20} {over:<22} {series.direction:<9} {exponent(series.slope(OURS)):>6}   "
        parts = []
        for rival in series.rivals:
            shared = series.shared(rival)
            if shared:
                first, last = (f"{series.ratio(rival, value):.2f}x" for value in (shared[0], shared[-1]))
                ends = first if len(shared) == 1 else f"{first} to {last}"
                parts.append(f"{rival} {exponent(series.slope(rival))}, {ends}, {series.wins_from(rival)}")
        lines.append((line + "; ".join(parts)).rstrip())
    return lines
