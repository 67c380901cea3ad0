"""Train, validation and test rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def split(
    dataset: Any, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random partition of the rows, the same for the same seed.

    Args:
        dataset: a data set, or the number of rows.
        fractions: shares of train, validation and test; non-negative, sum at most 1 (rows left over stay unused).
        seed: of the permutation.

    Returns:
        Three sorted int64 arrays of row numbers without overlap.

    Raises:
        ValueError: fractions that are not three shares; a share above zero that would get no row.
    """
    count = dataset if isinstance(dataset, (int, np.integer)) else len(dataset)
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() > 1 + 1e-9:
        raise ValueError(f"fractions: expected three shares >= 0 with a sum of at most 1, got {tuple(fractions)}")
    ends = np.rint(np.cumsum(shares) * count).astype(np.int64)
    order = np.random.default_rng(seed).permutation(count)
    parts = tuple(np.sort(part).astype(np.int64) for part in np.split(order[: ends[-1]], ends[:-1]))
    for name, share, part in zip(("train", "validation", "test"), shares, parts):
        if share > 0 and len(part) == 0:
            raise ValueError(f"fractions: {share} of {count} rows leaves no row for {name}")
    return parts
