"""Dependence of codes as if they were Gaussian: total correlation and Wasserstein correlation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import check_codes, check_finite, check_names
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False, kw_only=True)
class GaussianResult(Result):
    """What the two functions of this module share.

    Attributes:
        covariance: (D, D) sample covariance (N - 1 in the denominator).
        num_samples: of the estimate.
        code_names: D names, or None.
    """

    covariance: np.ndarray
    num_samples: int
    code_names: tuple[str, ...] | None = None

    def correlation(self) -> np.ndarray:
        """(D, D) correlation matrix; 0 between a constant code and every other."""
        return _correlation(self.covariance)

    def _table(self, title: str) -> str:
        codes = default_names(self.code_names, "z", len(self.covariance))
        rows = [(name, [*row, own]) for name, row, own in zip(codes, self.correlation(), self.covariance.diagonal())]
        return table(f"{title}  ({self.num_samples} samples)", [*codes, "variance"], rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The absolute correlations as a D x D matrix, on ``ax`` or a new figure."""
        codes = default_names(self.code_names, "z", len(self.covariance))
        return matrix_axes(np.abs(self.correlation()), codes, codes, str(self).partition("  (")[0], ax)


@dataclass(frozen=True, repr=False, kw_only=True)
class GaussianTotalCorrelation(GaussianResult):
    """What :func:`gaussian_total_correlation` returns: ``score`` in nats, >= 0, inf for linearly dependent codes."""

    score: float

    name = "gaussian_total_correlation"

    def __str__(self) -> str:
        return self._table(f"Gaussian total correlation {self.score:.4f}")


@dataclass(frozen=True, repr=False, kw_only=True)
class WassersteinCorrelation(GaussianResult):
    """What :func:`wasserstein_correlation` returns: ``score`` >= 0 in squared units of the codes, ``normalised`` it
    over the total variance, in [0, 2)."""

    score: float
    normalised: float

    name = "wasserstein_correlation"

    def __str__(self) -> str:
        return self._table(f"Gaussian Wasserstein correlation {self.score:.4f}, normalised {self.normalised:.4f}")


def gaussian_total_correlation(codes: Any, *, code_names: Any = None) -> GaussianTotalCorrelation:
    """Total correlation of the Gaussian with the codes' covariance (Locatello et al. 2019, appendix).

    ``KL(N(0, S) || N(0, diag S)) = 1/2 (sum_d log S_dd - log det S)``: 0 if no two codes are correlated, -1/2
    log(1 - rho^2) for two. It sees linear dependence only.

    Args:
        codes: (N, D), N >= 2; numpy or torch.
        code_names: D names for the printed table.

    Returns:
        :class:`GaussianTotalCorrelation`. Constant codes, which depend on nothing, are left out (disentanglement_lib
        returns NaN); linearly dependent codes, so also N <= D, give infinity.

    Raises:
        ValueError: empty arrays, a single sample, codes that are not finite. TypeError: not numbers.
    """
    covariance, num_samples, names = _covariance(codes, code_names)
    # The determinant of the correlations: the same, whatever the codes' units.
    variances = np.linalg.eigvalsh(_correlation(covariance))
    # Beneath rounding of the entries an eigenvalue means dependence.
    singular = variances[0] <= len(variances) * np.finfo(np.float64).eps * variances[-1]
    score = np.inf if singular else max(0.0, -0.5 * float(np.log(variances).sum()))
    return GaussianTotalCorrelation(covariance=covariance, num_samples=num_samples, code_names=names, score=score)


def wasserstein_correlation(codes: Any, *, code_names: Any = None) -> WassersteinCorrelation:
    """Squared 2-Wasserstein distance between the codes as a Gaussian and with correlations removed (Locatello et al.
    2019, appendix).

    ``W_2^2(N(0, S), N(0, diag S)) = 2 tr S - 2 tr (diag(S)^1/2 S diag(S)^1/2)^1/2``, and the same over ``tr S``. The
    root is of a symmetric matrix, through its eigenvalues (disentanglement_lib takes that of ``diag(S) S``, which has
    the same ones).

    Args:
        codes: (N, D), N >= 2; numpy or torch.
        code_names: D names for the printed table.

    Returns:
        :class:`WassersteinCorrelation`. Constant codes change nothing; where all are constant both values are 0.

    Raises:
        ValueError: empty arrays, a single sample, codes that are not finite. TypeError: not numbers.
    """
    covariance, num_samples, names = _covariance(codes, code_names)
    variance = covariance.diagonal()
    std = np.sqrt(variance)
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(std[:, None] * covariance * std), 0.0))
    total = float(variance.sum())
    score = max(0.0, 2.0 * total - 2.0 * float(roots.sum()))
    return WassersteinCorrelation(
        covariance=covariance,
        num_samples=num_samples,
        code_names=names,
        score=score,
        normalised=score / total if total > 0 else 0.0,
    )


def _covariance(codes: Any, names: Any) -> tuple[np.ndarray, int, tuple[str, ...] | None]:
    codes = check_codes(codes)
    check_finite(codes)
    if len(codes) < 2:
        raise ValueError("codes: expected at least two samples, got one: a covariance is not defined")
    names = check_names("code_names", names, codes.shape[1])
    covariance = np.atleast_2d(np.cov(codes, rowvar=False, dtype=np.float64))
    # The mean of equal values need not be exact; their covariance is.
    constant = codes.min(axis=0) == codes.max(axis=0)
    covariance[constant] = 0.0
    covariance[:, constant] = 0.0
    return covariance, len(codes), names


def _correlation(covariance: np.ndarray) -> np.ndarray:
    std = np.sqrt(covariance.diagonal())
    std = np.where(std > 0, std, 1.0)
    matrix = covariance / std[:, None] / std
    np.fill_diagonal(matrix, 1.0)
    return matrix
