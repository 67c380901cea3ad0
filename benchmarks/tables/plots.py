"""The plots as SVG: on a white sheet of their own, so that they read on light and dark pages."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from benchmarks._scaling import Series
from benchmarks.tables.markdown import milliseconds
from benchmarks.tables.results import COMPILED, EAGER, Machine, headlines

INK, MUTED, FAINT = "#15181e", "#5c6370", "#e3e5e9"
BLUE, ORANGE = "#3b53d1", "#d4610f"
# Of providers; what is not named here takes the last ones in turn.
COLOURS = {"strucfast": BLUE, "eager": "#7a828e", "torch.compile": ORANGE}
FURTHER = ("#1b8a5a", "#a23b9b", "#b08900", "#2f8fb3")


def _sheet(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="{html.escape(label)}">'
    )
    return "\n".join(
        [head, f'<rect width="{width:g}" height="{height:g}" rx="10" fill="#ffffff"/>', *parts, "</svg>\n"]
    )


def _text(
    x: float, y: float, text: str, colour: str = INK, anchor: str = "start", size: int = 12, weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}">{html.escape(text)}</text>'
    )


def ratios(machines: Sequence[Machine]) -> str:
    """Bars of the ratios over eager and torch.compile on a log axis; "" where nothing was compared with them."""
    bars = []
    for machine in machines:
        for row in headlines(machine.rows):
            found = [(row.ratio(EAGER), BLUE), (row.ratio(COMPILED), ORANGE)]
            if any(ratio is not None for ratio, _ in found):
                op, case, _, dtype, layout = row.key
                mark = "" if row.provider == "strucfast" else f" {row.provider}"
                bars.append((f"{op}{mark} {case} {dtype} {layout}", str(machine.meta["device"]), found))
    known = [ratio for _, _, found in bars for ratio, _ in found if ratio is not None]
    if not known:
        return ""
    low, high = math.log2(min(0.5, *known)), math.log2(max(2.0, *known))
    left, width, line, top = 400, 520, 34, 64

    def place(ratio: float) -> float:
        return left + width * (math.log2(ratio) - low) / (high - low)

    height = top + line * len(bars) + 20
    parts = [
        _text(16, 26, "Baseline time / strucfast time", size=15, weight=600),
        f'<rect x="16" y="38" width="12" height="8" fill="{BLUE}"/>' + _text(33, 46, "over eager", MUTED),
        f'<rect x="116" y="38" width="12" height="8" fill="{ORANGE}"/>' + _text(133, 46, "over torch.compile", MUTED),
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        x, stroke = place(2.0**power), "#444" if power == 0 else "#ddd"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{height - 12}" stroke="{stroke}"/>')
        parts.append(_text(x, top - 12, f"{2.0**power:g}x", MUTED, "middle"))
    for number, (name, device, found) in enumerate(bars):
        y = top + line * number
        parts += [
            _text(left - 10, y + 13, name, anchor="end"),
            _text(left - 10, y + 26, device, MUTED, "end", 10),
        ]
        for slot, (ratio, colour) in enumerate(found):
            if ratio is not None:
                start, end = sorted((place(1.0), place(ratio)))
                parts.append(
                    f'<rect x="{start:.1f}" y="{y + 3 + 12 * slot}" width="{end - start:.1f}" height="10" rx="2" '
                    f'fill="{colour}"/>' + _text(end + 5, y + 12 + 12 * slot, f"{ratio:.2f}x")
                )
    return _sheet(left + width + 70, height, "Speed of strucfast over eager PyTorch and torch.compile", parts)


def growth(machines: Sequence[Machine]) -> str:
    """Time by size, a small panel a series, both axes logarithmic; "" where no series was measured."""
    panels = [(machine, one) for machine in machines for one in machine.series]
    if not panels:
        return ""
    colours, further = dict(COLOURS), iter(FURTHER * 20)
    for provider in dict.fromkeys(provider for _, one in panels for provider in one.rows):
        if provider not in colours:
            colours[provider] = next(further)
    shown = [name for name in colours if any(name in one.rows for _, one in panels)]
    width, height, columns, top = 300, 230, 3, 72
    parts = [_text(16, 26, "How cost grows: milliseconds over size, both axes logarithmic", size=15, weight=600)]
    x = 16.0
    for name in shown:
        parts.append(
            f'<line x1="{x:.1f}" x2="{x + 18:.1f}" y1="46" y2="46" stroke="{colours[name]}" stroke-width="3"/>'
        )
        parts.append(_text(x + 24, 50, name, MUTED))
        x += 44 + 7 * len(name)
    several = len({id(machine) for machine, _ in panels}) > 1
    for number, (machine, one) in enumerate(panels):
        left, y = width * (number % columns) + 16, top + height * (number // columns)
        device = f" – {machine.meta['device']}" if several else ""
        parts += _panel(one, device, left, y, width - 24, height - 16, colours)
    rows = math.ceil(len(panels) / columns)
    whole = max(width * min(columns, len(panels)) + 16, x, 460)
    return _sheet(whole, top + height * rows, "Time of each provider by size", parts)


def _panel(
    one: Series, device: str, left: float, top: float, width: float, height: float, colours: dict[str, str]
) -> list[str]:
    lines = {name: sorted((v, row["median_ms"]) for v, row in points.items()) for name, points in one.rows.items()}
    costs = [cost for points in lines.values() for _, cost in points]
    sizes = one.values
    # Whole powers of ten around the times; at least one.
    low, high = math.floor(math.log10(min(costs))), math.ceil(math.log10(max(costs)))
    high = max(high, low + 1)
    first, last = math.log(sizes[0]), math.log(sizes[-1])
    x0, y0, w, h = left + 40, top + 38, width - 52, height - 64

    def across(size: float) -> float:
        return x0 + (w / 2 if last == first else w * (math.log(size) - first) / (last - first))

    def up(cost: float) -> float:
        return y0 + h * (high - math.log10(cost)) / (high - low)

    kind = ", ".join(part for part in (one.fixed, one.dtype, one.layout) if part)
    parts = [
        _text(left, top + 12, f"{one.op}, {one.direction}, over {one.axis}", weight=600),
        _text(left, top + 27, kind + device, MUTED, size=10),
    ]
    for power in range(low, high + 1):
        y = up(10.0**power)
        parts.append(f'<line x1="{x0:.1f}" x2="{x0 + w:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{FAINT}"/>')
        parts.append(_text(x0 - 5, y + 4, milliseconds(10.0**power), MUTED, "end", 10))
    for place, size in enumerate(sizes):
        # Of many sizes every second one is named, the last always.
        if len(sizes) <= 5 or (len(sizes) - 1 - place) % 2 == 0:
            parts.append(_text(across(size), y0 + h + 14, f"{size:g}", MUTED, "middle", 10))
    # Ours on top.
    for name in sorted(lines, key=lambda name: name == "strucfast"):
        points = " ".join(f"{across(size):.1f},{up(cost):.1f}" for size, cost in lines[name])
        stroke = f'stroke="{colours[name]}" stroke-width="{2.5 if name == "strucfast" else 1.6}"'
        parts.append(f'<polyline points="{points}" fill="none" {stroke}/>')
        parts += [
            f'<circle cx="{across(size):.1f}" cy="{up(cost):.1f}" r="2.4" fill="{colours[name]}"/>'
            for size, cost in lines[name]
        ]
    return parts
