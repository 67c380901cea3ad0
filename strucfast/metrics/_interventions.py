"""Rows of a pool that share the value of one factor: what the FactorVAE and BetaVAE scores draw."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class SharedValues:
    """Rows by the value of each factor.

    A factor can be fixed where it has at least two values, one of them in at least two rows. Values that only one row
    has cannot be held fixed while the rest changes, and are never drawn.

    Attributes:
        usable: the numbers of the factors that can be fixed.
    """

    def __init__(self, factors: np.ndarray) -> None:
        self._rows: dict[int, np.ndarray] = {}
        self._spans: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for k, column in enumerate(factors.T):
            order = np.argsort(column, kind="stable")
            _, starts, counts = np.unique(column[order], return_index=True, return_counts=True)
            # One entry a row, so that values come up as often as they do in the pool.
            begin, size = np.repeat(starts, counts), np.repeat(counts, counts)
            if len(starts) > 1 and counts.max() > 1:
                self._rows[k] = order
                self._spans[k] = begin[size > 1], size[size > 1]
        self.usable = np.array(sorted(self._rows), dtype=np.int64)
        if len(self.usable) == 0:
            raise ValueError(
                "factors: expected a factor with at least two values, one of them in at least two rows, got none"
            )

    def fixed(self, total: int, chunk: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
        """Factors to fix, and for how many of ``total`` batches each, at most ``chunk`` at once, in order."""
        counts = rng.multinomial(total, np.full(len(self.usable), 1 / len(self.usable)))
        for factor, count in zip(self.usable, counts):
            for begin in range(0, count, chunk):
                yield int(factor), min(chunk, count - begin)

    def draw(self, factor: int, count: int, batch: int, rng: np.random.Generator) -> np.ndarray:
        """(count, batch) rows, the value of ``factor`` the same along each row of the result; with replacement."""
        begin, size = self._spans[factor]
        chosen = rng.integers(len(begin), size=count)
        offset = rng.integers(size[chosen, None], size=(count, batch))
        return self._rows[factor][begin[chosen, None] + offset]

    def draw_pairs(self, factor: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Twice (count,) rows: two different ones that agree in ``factor``, each pair with a value of its own."""
        begin, size = self._spans[factor]
        chosen = rng.integers(len(begin), size=count)
        first = rng.integers(size[chosen])
        other = (first + 1 + rng.integers(size[chosen] - 1)) % size[chosen]
        rows, start = self._rows[factor], begin[chosen]
        return rows[start + first], rows[start + other]


def check_counts(**values: int) -> None:
    """ValueError naming the first value that is no integer >= its least (1; ``batch_size`` 2)."""
    for name, value in values.items():
        least = 2 if name == "batch_size" else 1
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
