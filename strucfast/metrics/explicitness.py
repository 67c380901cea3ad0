"""Explicitness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import check_codes, check_factors, check_finite, check_names, check_test
from ._logistic import LogisticRegressions, one_blas_thread
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class ExplicitnessResult(Result):
    """What :func:`explicitness` returns.

    Attributes:
        score: mean of ``per_factor`` over the factors it is defined for; 1/2 is chance.
        score_train: the same of the rows that were fitted.
        per_factor: (K,) mean of ``per_class``; NaN for a factor with a single value.
        per_class: K arrays of areas under the ROC curve, one value per class of the fitted rows; NaN for a class that
            none or all of the scored rows have.
        classes: K arrays of the factor values these belong to.
        num_train, num_test: rows fitted and rows scored.
        factor_names: K names, or None.
    """

    score: float
    score_train: float
    per_factor: np.ndarray
    per_class: tuple[np.ndarray, ...]
    classes: tuple[np.ndarray, ...]
    num_train: int
    num_test: int
    factor_names: tuple[str, ...] | None = None

    name = "explicitness"

    def __str__(self) -> str:
        factors = default_names(self.factor_names, "v", len(self.per_factor))
        defined = [areas[np.isfinite(areas)] for areas in self.per_class]
        rows = [
            ("AUC", self.per_factor),
            ("worst class", [areas.min() if len(areas) else np.nan for areas in defined]),
        ]
        return table(f"Explicitness {self.score:.4f}  ({self.num_train}/{self.num_test} samples)", factors, rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """``per_factor`` as a row of cells, on ``ax`` or a new figure."""
        factors = default_names(self.factor_names, "v", len(self.per_factor))
        return matrix_axes(self.per_factor[None], ["AUC"], factors, f"Explicitness {self.score:.3f}", ax)


def explicitness(
    codes: Any, factors: Any, codes_test: Any = None, factors_test: Any = None, *, factor_names: Any = None
) -> ExplicitnessResult:
    """Explicitness (Ridgeway & Mozer 2018, "Learning Deep Disentangled Embeddings with the F-Statistic Loss").

    How well a linear map of all codes tells every value of every factor from the others: the mean over factors, and
    within a factor over its values, of the area under the one-against-the-rest ROC curve of logistic regression on
    standardised codes. The regression is scikit-learn's ``LogisticRegression()`` (multinomial, C = 1), fitted to all
    factors at once by :class:`~strucfast.metrics._logistic.LogisticRegressions`.

    Args:
        codes: (N, D) latent codes, posterior means as a rule; numpy or torch.
        factors: (N, K) integer factor values.
        codes_test, factors_test: (M, D) and (M, K) rows to score; without them, the rows that were fitted.
        factor_names: K names for the printed table.

    Returns:
        :class:`ExplicitnessResult`. 1/2 is chance, 1 is linear separability (some papers report ``2 AUC - 1``). Ties
        count one half. Constant codes are left out (disentanglement_lib divides by their standard deviation and
        fails); without any other code every area is 1/2. A factor with a single value is left out, and so are values
        that only occur on one side of the split.

    Raises:
        ValueError: empty arrays, shapes that do not belong together, codes that are not finite, factors that are not
            integers, no factor with two values in the rows fitted or scored. TypeError: not numbers.
    """
    codes = check_codes(codes)
    check_finite(codes)
    factors = check_factors(factors, len(codes))
    test = check_test(codes, factors, codes_test, factors_test)
    factor_names = check_names("factor_names", factor_names, factors.shape[1])
    varies = (factors != factors[0]).any(axis=0)
    if not varies.any():
        raise ValueError("factors: expected a factor with at least two values, got one value each")
    # Constant codes are found by their values: the deviation of equal values may be a rounding error.
    alive = codes.min(axis=0) < codes.max(axis=0)
    values = codes[:, alive].astype(np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)
    values = (values - mean) / std
    pairs = [np.unique(column, return_inverse=True) for column in factors.T]
    fitted = np.flatnonzero(varies)

    def areas(
        models: LogisticRegressions, inputs: np.ndarray, labels: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        per_class = [np.full(len(known), np.nan) for known, _ in pairs]
        for k, probabilities in zip(fitted, models.probabilities(inputs)):
            per_class[k] = np.array([auc(p, labels[:, k] == v) for p, v in zip(probabilities, pairs[k][0])])
        defined = [area[np.isfinite(area)] for area in per_class]
        return per_class, np.array([area.mean() if len(area) else np.nan for area in defined])

    with one_blas_thread():
        models = LogisticRegressions(values, np.stack([pairs[k][1] for k in fitted], axis=1))
        per_class, per_factor = areas(models, values, factors)
        score_train = float(np.nanmean(per_factor))
        if test is not None:
            per_class, per_factor = areas(models, (test[0][:, alive].astype(np.float64) - mean) / std, test[1])
    if np.isnan(per_factor).all():
        raise ValueError("factors_test: expected a factor with at least two of the values that factors has")
    return ExplicitnessResult(
        score=float(np.nanmean(per_factor)),
        score_train=score_train,
        per_factor=per_factor,
        per_class=tuple(per_class),
        classes=tuple(known for known, _ in pairs),
        num_train=len(codes),
        num_test=len(codes) if test is None else len(test[0]),
        factor_names=factor_names,
    )


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in order, ties 1/2; NaN without any pair.

    Args:
        scores: (N,). positive: (N,) bool.
    """
    chosen = np.sort(scores[positive])
    negatives = len(scores) - len(chosen)
    if len(chosen) == 0 or negatives == 0:
        return np.nan
    ordered = np.sort(scores)
    # Twice the number of scores below each positive, ties 1/2; among the positives themselves that adds up to n^2.
    below = np.searchsorted(ordered, chosen, "left").sum() + np.searchsorted(ordered, chosen, "right").sum()
    return float((int(below) - len(chosen) ** 2) / (2 * len(chosen) * negatives))
