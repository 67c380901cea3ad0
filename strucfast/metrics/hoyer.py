"""Hoyer sparsity of codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import check_codes, check_finite, check_names
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class HoyerResult(Result):
    """What :func:`hoyer` returns.

    Attributes:
        score: mean of ``per_sample``, in [0, 1]: 1 if every row has a single non-zero code, 0 if all are equally large.
        per_sample: (N,).
        share: (D,) mean share of a code in the sum of absolute normalised codes.
        std: (D,) sample standard deviations that the codes were divided by; all 1 without ``normalise``.
        code_names: D names, or None.
    """

    score: float
    per_sample: np.ndarray
    share: np.ndarray
    std: np.ndarray
    code_names: tuple[str, ...] | None = None

    name = "hoyer"

    def __str__(self) -> str:
        codes = default_names(self.code_names, "z", len(self.std))
        title = f"Hoyer sparsity {self.score:.4f}  ({len(self.per_sample)} samples)"
        return table(title, codes, [("share", self.share), ("std", self.std)])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Each code's share as a row of cells, on ``ax`` or a new figure."""
        codes = default_names(self.code_names, "z", len(self.std))
        return matrix_axes(self.share[None], ["share"], codes, f"Hoyer sparsity {self.score:.3f}", ax)


def hoyer(codes: Any, *, normalise: bool = True, code_names: Any = None) -> HoyerResult:
    """Hoyer sparsity (Hurley & Rickard 2009; Mathieu et al. 2019, "Disentangling Disentanglement", section 5.3).

    ``mean_n (sqrt(D) - |y|_1 / |y|_2) / (sqrt(D) - 1)`` with ``y = z_n / std``: each code is first divided by its
    standard deviation over the samples (N - 1 in the denominator), not centred, so that a code of little variance
    counts as much as others.

    Args:
        codes: (N, D) latent codes, D >= 2 and with ``normalise`` N >= 2; numpy or torch.
        normalise: False takes the codes as they are.
        code_names: D names for the printed table.

    Returns:
        :class:`HoyerResult`. With ``normalise`` a constant code counts as 0, as it has no standard deviation; a row of
        zeros scores 0.

    Raises:
        ValueError: empty arrays, a single code, a single sample with ``normalise``, codes that are not finite.
            TypeError: not numbers.
    """
    codes = check_codes(codes)
    check_finite(codes)
    rows, columns = codes.shape
    if columns < 2:
        raise ValueError("codes: expected at least two codes, got one: sparsity is not defined")
    if normalise and rows < 2:
        raise ValueError("codes: expected at least two samples to normalise by, got one")
    code_names = check_names("code_names", code_names, columns)
    values = codes.astype(np.float64)
    std = np.ones(columns)
    if normalise:
        # By their values: the deviation of equal values need not come out as exactly 0.
        std = np.where(codes.min(axis=0) < codes.max(axis=0), values.std(axis=0, ddof=1), 0.0)
        values = values / np.where(std > 0, std, np.inf)
    values = np.abs(values)
    # Scaled by the largest: squares neither overflow nor vanish.
    largest = values.max(axis=1, keepdims=True)
    values /= np.where(largest > 0, largest, 1.0)
    total, length = values.sum(axis=1), np.sqrt(np.square(values).sum(axis=1))
    some = total > 0
    root = np.sqrt(columns)
    per_sample = np.where(some, (root - total / np.where(some, length, 1.0)) / (root - 1.0), 0.0)
    # Rounding must not leave the range.
    per_sample = np.clip(per_sample, 0.0, 1.0)
    share = (values / np.where(some, total, 1.0)[:, None]).mean(axis=0)
    return HoyerResult(float(per_sample.mean()), per_sample, share, std, code_names)
