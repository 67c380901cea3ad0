"""Interventional robustness score (IRS)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import check_codes, check_factors, check_finite, check_names
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class IRSResult(Result):
    """What :func:`irs` returns.

    Attributes:
        score: mean of ``per_code``, weighted by ``deviation``; 0 where every code is constant.
        per_code: (D,) the largest entry of each row of ``matrix``.
        matrix: (D, K) robustness of a code, given a factor, to all others: at most 1, and 0 for a constant code.
        factor_of_code: (D,) the factor each code is most robust given, -1 for a constant code.
        deviation: (D,) largest distance of a code from its mean; 0 for a constant code.
        quantile, num_samples: of the estimate.
        code_names, factor_names: D and K names, or None.
    """

    score: float
    per_code: np.ndarray
    matrix: np.ndarray
    factor_of_code: np.ndarray
    deviation: np.ndarray
    quantile: float
    num_samples: int
    code_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None

    name = "irs"

    def __str__(self) -> str:
        codes, factors = self._names()
        columns = zip(codes, self.matrix, self.per_code, self.deviation)
        rows = [(name, [*row, own, deviation]) for name, row, own, deviation in columns]
        title = f"IRS {self.score:.4f}  ({self.num_samples} samples, quantile {self.quantile:g})"
        return table(title, [*factors, "robust", "deviation"], rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The robustness as a D x K matrix, on ``ax`` or a new figure."""
        return matrix_axes(self.matrix, *self._names(), f"IRS {self.score:.3f}", ax)

    def _names(self) -> tuple[list[str], list[str]]:
        codes, factors = self.matrix.shape
        return default_names(self.code_names, "z", codes), default_names(self.factor_names, "v", factors)


def irs(
    codes: Any, factors: Any, quantile: float = 0.99, *, code_names: Any = None, factor_names: Any = None
) -> IRSResult:
    """Interventional robustness score (Suter et al. 2019, "Robustly Disentangled Causal Mechanisms", section 4).

    With a factor fixed, how far do the others move a code? ``R_dk = 1 - mean_v quantile(|z_d - E[z_d | v_k = v]|) /
    max |z_d - E z_d|``, the mean over the values that factor k takes; a code scores ``max_k R_dk``, and the score is
    the mean over codes weighted by ``max |z_d - E z_d|``.

    Args:
        codes: (N, D) latent codes, posterior means as a rule; numpy or torch.
        factors: (N, K) integer factor values. The grid of combinations may have holes.
        quantile: of the deviations, in (0, 1], with numpy's linear interpolation. The default is
            disentanglement_lib's; the paper takes the maximum, 1.0.
        code_names, factor_names: D and K names for the printed table.

    Returns:
        :class:`IRSResult`. Constant codes are left out, as their ratio is not defined. A factor with a single value
        fixes nothing: its column is 0.

    Raises:
        ValueError: empty arrays, shapes that do not belong together, codes that are not finite, factors that are not
            integers, no factor with two values, a quantile outside (0, 1]. TypeError: not numbers.
    """
    if isinstance(quantile, bool) or not isinstance(quantile, (int, float)) or not 0 < quantile <= 1:
        raise ValueError(f"quantile: expected a number in (0, 1], got {quantile!r}")
    codes = check_codes(codes)
    check_finite(codes)
    factors = check_factors(factors, len(codes))
    code_names = check_names("code_names", code_names, codes.shape[1])
    factor_names = check_names("factor_names", factor_names, factors.shape[1])
    moves = (factors != factors[0]).any(axis=0)
    if not moves.any():
        raise ValueError("factors: expected a factor with at least two values, got one value each")
    # Constant codes are found by their values: their mean need not be exact.
    varies = codes.min(axis=0) < codes.max(axis=0)
    values = np.ascontiguousarray(codes.T, np.float64)
    deviation = np.abs(values - values.mean(axis=1, keepdims=True)).max(axis=1)
    deviation[~varies] = 0.0
    scale = np.where(varies, deviation, 1.0)
    left = np.stack([_mean_deviation(values, column, quantile) for column in factors.T], axis=1)
    matrix = np.where(varies[:, None] & moves, 1.0 - left / scale[:, None], 0.0)
    per_code = matrix.max(axis=1)
    total = deviation.sum()
    return IRSResult(
        score=float(deviation @ per_code / total) if total > 0 else 0.0,
        per_code=per_code,
        matrix=matrix,
        factor_of_code=np.where(varies, matrix.argmax(axis=1), -1),
        deviation=deviation,
        quantile=float(quantile),
        num_samples=len(codes),
        code_names=code_names,
        factor_names=factor_names,
    )


def _mean_deviation(values: np.ndarray, factor: np.ndarray, quantile: float) -> np.ndarray:
    """(D,) mean over a factor's values of the quantile of the deviations from the mean given that value."""
    order = np.argsort(factor, kind="stable")
    ordered = factor[order]
    bounds = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1), len(ordered)]
    total = np.zeros(len(values))
    for begin, end in itertools.pairwise(bounds):
        part = values[:, order[begin:end]]
        part -= part.mean(axis=1, keepdims=True)
        total += _quantile(np.abs(part, out=part), quantile)
    return total / (len(bounds) - 1)


def _quantile(rows: np.ndarray, quantile: float) -> np.ndarray:
    """``numpy.quantile(rows, quantile, axis=1)``, its linear interpolation, by partition of the rows in place."""
    if quantile == 1:
        return rows.max(axis=1)
    at = quantile * (rows.shape[1] - 1)
    low = int(at)
    high = min(low + 1, rows.shape[1] - 1)
    rows.partition((low, high), axis=1)
    return rows[:, low] + (at - low) * (rows[:, high] - rows[:, low])
