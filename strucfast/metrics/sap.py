"""Separated attribute predictability (SAP)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import check_codes, check_factors, check_finite, check_names, check_real_factors, check_test
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A code of less variance predicts nothing, as in disentanglement_lib.
_DEAD = 1e-12


@dataclass(frozen=True, repr=False)
class SAPResult(Result):
    """What :func:`sap` returns.

    Attributes:
        score: mean of ``per_factor`` over the factors that vary.
        per_factor: (K,) largest minus second largest entry of each column of ``scores``; NaN for a single value.
        scores: (D, K) how well a code alone predicts a factor: accuracy, or squared correlation of continuous factors.
        continuous: which of the two.
        num_train, num_test: rows fitted and rows scored.
        code_names, factor_names: D and K names, or None.
    """

    score: float
    per_factor: np.ndarray
    scores: np.ndarray
    continuous: bool
    num_train: int
    num_test: int
    code_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None

    name = "sap"

    def __str__(self) -> str:
        codes, factors = self._names()
        rows = [*zip(codes, self.scores), ("gap", self.per_factor)]
        kind = "squared correlation" if self.continuous else "accuracy"
        title = f"SAP {self.score:.4f}  ({self.num_train}/{self.num_test} samples, {kind})"
        return table(title, factors, rows, rules=(len(codes),))

    def plot(self, ax: Axes | None = None) -> Axes:
        """``scores`` as a D x K matrix, on ``ax`` or a new figure."""
        return matrix_axes(self.scores, *self._names(), f"SAP {self.score:.3f}", ax)

    def _names(self) -> tuple[list[str], list[str]]:
        codes, factors = self.scores.shape
        return default_names(self.code_names, "z", codes), default_names(self.factor_names, "v", factors)


def sap_from_scores(scores: Any) -> tuple[float, np.ndarray]:
    """SAP of a matrix of prediction scores: mean over factors of the largest minus the second largest.

    Args:
        scores: (D, K), finite. With a single code the second largest is 0.

    Returns:
        the mean, and the differences (K,).
    """
    matrix = np.asarray(scores, np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"scores: expected a non-empty array (D, K), got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("scores: expected finite values")
    ordered = np.sort(matrix, axis=0)
    gap = ordered[-1] - (ordered[-2] if len(ordered) > 1 else 0.0)
    return float(gap.mean()), gap


def sap(
    codes: Any,
    factors: Any,
    codes_test: Any = None,
    factors_test: Any = None,
    *,
    continuous: bool = False,
    code_names: Any = None,
    factor_names: Any = None,
) -> SAPResult:
    """Separated attribute predictability (Kumar et al. 2018, DIP-VAE, section 3).

    Every factor is predicted from every code alone; the score is the mean gap between the best code and the next.
    Discrete factors are predicted by scikit-learn's ``LinearSVC(C=0.01, class_weight="balanced")`` and judged by
    accuracy, continuous ones by a line and judged by the squared correlation: the two give different values for the
    same integer factors, so say which.

    Args:
        codes: (N, D) latent codes, posterior means as a rule; numpy or torch.
        factors: (N, K) integer factor values; real numbers with ``continuous``.
        codes_test, factors_test: (M, D) and (M, K) rows that the fitted classifiers are judged on, as in
            disentanglement_lib; without them, the rows they were fitted to. Not used with ``continuous``.
        continuous: squared correlations instead of classifiers.
        code_names, factor_names: D and K names for the printed table.

    Returns:
        :class:`SAPResult`. With a single code the second best is 0. A code of variance 1e-12 or less scores 0 (a
        constant code). A factor with a single value is left out of the mean.

    Raises:
        ValueError: empty arrays, shapes that do not belong together, codes that are not finite, discrete factors that
            are not integers, no factor with two values. TypeError: not numbers.
    """
    codes = check_codes(codes)
    check_finite(codes)
    factors = check_real_factors(factors, len(codes)) if continuous else check_factors(factors, len(codes))
    test = check_test(codes, factors, codes_test, factors_test, continuous=continuous)
    code_names = check_names("code_names", code_names, codes.shape[1])
    factor_names = check_names("factor_names", factor_names, factors.shape[1])
    varies = (factors != factors[0]).any(axis=0)
    if not varies.any():
        raise ValueError("factors: expected a factor with at least two values, got one value each")
    scores = np.zeros((codes.shape[1], factors.shape[1]))
    if continuous:
        test = None
        scores[:, varies] = _squared_correlation(codes, factors[:, varies])
    else:
        test_codes, test_factors = test or (codes, factors)
        for d in np.flatnonzero(codes.var(axis=0, dtype=np.float64) > _DEAD):
            for k in np.flatnonzero(varies):
                scores[d, k] = _accuracy(codes[:, [d]], factors[:, k], test_codes[:, [d]], test_factors[:, k])
    score, gap = sap_from_scores(scores[:, varies])
    per_factor = np.full(len(varies), np.nan)
    per_factor[varies] = gap
    return SAPResult(
        score=score,
        per_factor=per_factor,
        scores=scores,
        continuous=continuous,
        num_train=len(codes),
        num_test=len(codes if test is None else test[0]),
        code_names=code_names,
        factor_names=factor_names,
    )


def _squared_correlation(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """(D, K); 0 for codes that are as good as constant."""
    codes = codes.astype(np.float64) - codes.mean(axis=0, dtype=np.float64)
    factors = factors - factors.mean(axis=0, dtype=np.float64)
    factors /= np.abs(factors).max(axis=0)
    # Variances of N - 1, for the threshold.
    alive = np.square(codes).sum(axis=0) > _DEAD * (len(codes) - 1)
    codes /= np.where(alive, np.sqrt(np.square(codes).sum(axis=0)), np.inf)
    factors /= np.sqrt(np.square(factors).sum(axis=0))
    return np.square(codes.T @ factors)


def _accuracy(code: np.ndarray, factor: np.ndarray, test_code: np.ndarray, test_factor: np.ndarray) -> float:
    from sklearn.svm import LinearSVC

    # The seed orders coordinates of the solver; a fit that stops at its iteration limit is what others score, too.
    model = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*converge.*")
        model.fit(code, factor)
    return float((model.predict(test_code) == test_factor).mean())
