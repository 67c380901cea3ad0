"""What the results of all metrics share: a dict for files, a table for people, a matrix for figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    # JSON has no NaN.
    return None if isinstance(value, float) and not np.isfinite(value) else value


class Result:
    """Base of the frozen result dataclasses."""

    name: ClassVar[str]
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for JSON: the score and all fields; undefined values are None."""
        fields = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"score": _plain(self.score), **fields}

    def __repr__(self) -> str:
        return str(self)


def default_names(names: Sequence[str] | None, letter: str, count: int) -> list[str]:
    """The names, or z0, z1, ..."""
    return list(names) if names is not None else [f"{letter}{i}" for i in range(count)]


def table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Any]], rules: Sequence[int] = ()) -> str:
    """Named rows of numbers under named columns; a rule above the rows ``rules``, "-" for NaN."""
    cells = [[name, *("-" if np.isnan(v) else f"{v:.4f}" for v in values)] for name, values in rows]
    lines = [["", *columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    text = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        ).rstrip()
        for line in lines
    ]
    rule = "-" * max(len(line) for line in text)
    for at in sorted((0, *rules), reverse=True):
        text.insert(at + 1, rule)
    return "\n".join([title, *text])


def matrix_axes(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, ax: Axes | None) -> Axes:
    """A (rows, columns) matrix of shares in [0, 1] as a heat map with its numbers."""
    if ax is None:
        from matplotlib.figure import Figure

        # A figure of its own, not pyplot's: nothing to close, no window, no back end to choose.
        size = (1.2 + 0.75 * len(columns), 1.0 + 0.36 * len(rows))
        ax = Figure(figsize=size, layout="constrained").add_subplot()
    ax.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    for (row, column), value in np.ndenumerate(values):
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    ax.set_title(title)
    return ax
