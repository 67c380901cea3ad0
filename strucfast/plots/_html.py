"""Small HTML pieces of the report: escaping, numbers, tables, images, and line charts that stay sharp at any width."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .curves import Series, wants_log_axis
from .images import encode_png


def escape(text: object) -> str:
    """Any value as text that is safe between tags and inside quoted attributes."""
    return html.escape(str(text), quote=True)


def number(value: Any, digits: int = 3) -> str:
    """A number for people: "0.537", "1,073,551", "3.2e-05"; a dash when it is missing or not finite."""
    if value is None or isinstance(value, bool):
        return "–" if value is None else str(value)
    value = float(value)
    if not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value)))) if abs(value) >= 1 else digits}f}"


def duration(seconds: float) -> str:
    """Seconds for people: "85 ms", "4.2 s", "2 min 54 s", "3 h 05 min"."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def image_tag(image: np.ndarray, alt: str, shown_width: int | None = None) -> str:
    """A uint8 image (H, W, C) embedded as a PNG; pixels stay square-edged where it is shown larger than it is."""
    data = base64.b64encode(encode_png(image)).decode("ascii")
    height, width = image.shape[:2]
    pixels = ' class="pixels"' if shown_width is not None and shown_width > width else ""
    return f'<img{pixels} src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">'


def table(head: Sequence[object], rows: Iterable[Sequence[object]], foot: Sequence[object] | None = None) -> str:
    """A table of escaped cells; strings are set left, numbers right."""

    def cells(row: Sequence[object], tag: str = "td") -> str:
        parts = []
        for place, cell in enumerate(row):
            if isinstance(cell, str):
                parts.append(
                    f'<{tag} class="text">{escape(cell)}</{tag}>' if place else f"<{tag}>{escape(cell)}</{tag}>"
                )
            else:
                parts.append(f"<{tag}>{escape(number(cell))}</{tag}>")
        return "<tr>" + "".join(parts) + "</tr>"

    parts = ['<div class="scroll"><table>']
    if head:
        parts.append("<thead><tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr></thead>")
    parts.append("<tbody>" + "".join(cells(row) for row in rows) + "</tbody>")
    if foot is not None:
        parts.append("<tfoot>" + cells(foot) + "</tfoot>")
    return "".join(parts) + "</table></div>"


def flatten(config: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested config as ("section.field", "value") rows; lists stay on one line."""
    if not isinstance(config, dict):
        return [(prefix or "value", str(config))]
    rows = []
    for name, value in config.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        rows += flatten(value, key) if isinstance(value, dict) and value else [(key, str(value))]
    return rows


def thin(steps: Sequence[float], values: Sequence[float], most: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` points: means over equal runs of neighbours, which keeps a noisy curve's level."""
    xs, ys = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if len(xs) <= most:
        return xs, ys
    edges = np.linspace(0, len(xs), most + 1).astype(int)
    counts = np.diff(edges)
    return np.add.reduceat(xs, edges[:-1]) / counts, np.add.reduceat(ys, edges[:-1]) / counts


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    gap = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / gap - 1e-9)
    return [count * gap for count in range(first, math.floor(high / gap + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high]; with fewer than three of them also their 2- and 5-folds."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0,), (1.0, 2.0, 5.0)):
        ticks = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: -(-len(ticks) // 7)] if ticks else [low, high]


def short(value: float) -> str:
    """A tick label: "12k", "1.5M", "0.25"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.3g}"


def chart(name: str, series: Series, unit: str = "") -> str:
    """A line chart of split -> (steps, values): lines in a stretched SVG, labels in HTML, which phones can read."""
    thinned = {split: thin(*points) for split, points in series.items() if points[0]}
    every_x = np.concatenate([xs for xs, _ in thinned.values()])
    every_y = np.concatenate([ys for _, ys in thinned.values()])
    log = wants_log_axis(every_y.tolist())
    x_low, x_high = float(every_x.min()), float(every_x.max())
    low, high = float(every_y.min()), float(every_y.max())
    if x_low == x_high:
        x_low, x_high = x_low - 1.0, x_high + 1.0
    if low == high:
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    if log:
        low, high = low / 1.08, high * 1.08
        ticks = log_ticks(low, high)
    else:
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
        ticks = linear_ticks(low, high)

    def across(x: float) -> float:
        return 100.0 * (x - x_low) / (x_high - x_low)

    def down(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return 100.0 - 100.0 * share

    paths = [f'<path class="rule" d="M0 {10 * down(tick):.1f}H1000"/>' for tick in ticks]
    keys, data = [], []
    for split, (xs, ys) in thinned.items():
        kind = split if split in ("train", "validation") else "other"
        places = [f"{10 * across(x):.1f} {10 * down(y):.1f}" for x, y in zip(xs, ys, strict=True)]
        paths.append(f'<path class="{kind}" d="M{"L".join(places)}"/>')
        if len(places) <= 40:
            # strokes of length 0 with round caps stay round dots under the stretched scale; circles would not
            paths.append(f'<path class="{kind} dots" d="{"".join(f"M{place}h0" for place in places)}"/>')
        keys.append(f'<span class="key {kind}">{escape(split)} {escape(number(ys[-1]))}</span>')
        data.append({"name": split, "x": [round(float(x), 1) for x in xs], "y": [number(y) for y in ys]})
    labels = [f'<span class="y" style="top:{down(tick):.2f}%">{escape(short(tick))}</span>' for tick in ticks]
    for tick in (tick for tick in linear_ticks(x_low, x_high) if tick == round(tick)):
        last = " last" if across(tick) > 96 else ""
        labels.append(f'<span class="x{last}" style="left:{across(tick):.2f}%">{escape(short(tick))}</span>')
    store = escape(json.dumps({"low": x_low, "high": x_high, "series": data}))
    axis = "log axis" if log else ""
    extra = " · ".join(part for part in (unit, axis) if part)
    caption = f"<b>{escape(name)}" + (f" <small>{escape(extra)}</small>" if extra else "") + "</b>" + "".join(keys)
    return (
        f'<figure class="chart"><figcaption>{caption}</figcaption><div class="plot" data-chart="{store}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{escape(name)} over the step">'
        f'{"".join(paths)}</svg>{"".join(labels)}<span class="cursor"></span><span class="readout"></span>'
        "</div></figure>"
    )
