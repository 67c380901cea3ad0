"""BetaVAE score."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import check_codes, check_factors, check_finite, check_names
from ._interventions import SharedValues, check_counts
from ._logistic import one_blas_thread
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Differences that are averaged at once: some MiB.
_CHUNK = 256


@dataclass(frozen=True, repr=False)
class BetaVAEScoreResult(Result):
    """What :func:`beta_vae_score` returns.

    Attributes:
        score: accuracy of the linear classifier on the evaluation points.
        train_accuracy: on the points it was fitted to.
        per_factor: (K,) accuracy on the evaluation points of that factor; NaN for a factor that cannot be fixed.
        confusion: (K, K) evaluation points with row's factor fixed that were taken for column's.
        difference: (K, D) mean of the features with factor k fixed: |z1 - z2| over the code's standard deviation.
        batch_size, num_samples: of the estimate.
        code_names, factor_names: D and K names, or None.
    """

    score: float
    train_accuracy: float
    per_factor: np.ndarray
    confusion: np.ndarray
    difference: np.ndarray
    batch_size: int
    num_samples: int
    code_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None

    name = "beta_vae_score"

    def __str__(self) -> str:
        factors = default_names(self.factor_names, "v", len(self.per_factor))
        rows = [(name, [*row, own]) for name, row, own in zip(factors, self._shares(), self.per_factor)]
        title = (
            f"BetaVAE score {self.score:.4f}  ({self.confusion.sum()} points, {self.batch_size} pairs each,"
            f" {self.num_samples} samples; fixed factors against those predicted)"
        )
        return table(title, [*factors, "accuracy"], rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The confusions as a K x K matrix, each row over its sum, on ``ax`` or a new figure."""
        factors = default_names(self.factor_names, "v", len(self.per_factor))
        return matrix_axes(self._shares(), factors, factors, f"BetaVAE score {self.score:.3f}", ax)

    def _shares(self) -> np.ndarray:
        return self.confusion / np.maximum(self.confusion.sum(axis=1, keepdims=True), 1)


def beta_vae_score(
    codes: Any,
    factors: Any,
    *,
    num_train: int = 10000,
    num_eval: int = 5000,
    batch_size: int = 64,
    seed: int = 0,
    code_names: Any = None,
    factor_names: Any = None,
) -> BetaVAEScoreResult:
    """BetaVAE score (Higgins et al. 2017, "beta-VAE", section 3).

    How well a linear classifier tells which factor the two rows of each pair have in common from the mean of |z1 - z2|
    over ``batch_size`` such pairs. Pairs are drawn from the rows given, each pair with a value of its own. The
    classifier is scikit-learn's multinomial ``LogisticRegression()``; codes are divided by their standard deviation
    first, so that the score does not depend on their scale.

    Args:
        codes: (N, D) latent codes, posterior means as a rule; numpy or torch.
        factors: (N, K) integer factor values. The grid of combinations may have holes.
        num_train, num_eval: points that the classifier is fitted to, and points it is judged by.
        batch_size: pairs a point.
        seed: of the drawn pairs.
        code_names, factor_names: D and K names for the printed table.

    Returns:
        :class:`BetaVAEScoreResult`. Constant codes are left out; where none is left the classifier can only take the
        most frequent factor. Factors with one value, or none that two rows share, cannot be fixed and are left out;
        with a single factor left the score is 1.

    Raises:
        ValueError: empty arrays, shapes that do not belong together, codes that are not finite, factors that are not
            integers, no factor that can be fixed, counts below 1. TypeError: not numbers.
    """
    check_counts(num_train=num_train, num_eval=num_eval, batch_size=batch_size)
    codes = check_codes(codes)
    check_finite(codes)
    factors = check_factors(factors, len(codes))
    code_names = check_names("code_names", code_names, codes.shape[1])
    factor_names = check_names("factor_names", factor_names, factors.shape[1])
    groups = SharedValues(factors)
    varies = codes.min(axis=0) < codes.max(axis=0)
    std = np.where(varies, codes.std(axis=0, dtype=np.float64), 1.0)
    scaled = np.where(varies, codes, 0) / std
    rng = np.random.default_rng(seed)
    train, train_labels = _points(scaled, groups, num_train, batch_size, rng)
    points, labels = _points(scaled, groups, num_eval, batch_size, rng)
    predicted = _predict(train[:, varies], train_labels, (train[:, varies], points[:, varies]))
    count = factors.shape[1]
    confusion = np.bincount(labels * count + predicted[1], minlength=count * count).reshape(count, count)
    asked = confusion.sum(axis=1)
    difference = np.zeros((count, codes.shape[1]))
    for factor in np.unique(train_labels):
        difference[factor] = train[train_labels == factor].mean(axis=0)
    return BetaVAEScoreResult(
        score=float((predicted[1] == labels).mean()),
        train_accuracy=float((predicted[0] == train_labels).mean()),
        per_factor=np.where(asked > 0, confusion.diagonal() / np.maximum(asked, 1), np.nan),
        confusion=confusion,
        difference=difference,
        batch_size=int(batch_size),
        num_samples=len(codes),
        code_names=code_names,
        factor_names=factor_names,
    )


def _points(codes: np.ndarray, groups: SharedValues, total: int, batch: int, rng: np.random.Generator):
    """(total, D) mean differences and the (total,) factors that were fixed."""
    points, fixed = np.empty((total, codes.shape[1])), np.empty(total, np.int64)
    at = 0
    for factor, size in groups.fixed(total, _CHUNK, rng):
        first, other = groups.draw_pairs(factor, size * batch, rng)
        distance = np.abs(codes[first] - codes[other])
        points[at : at + size] = distance.reshape(size, batch, -1).mean(axis=1)
        fixed[at : at + size] = factor
        at += size
    return points, fixed


def _predict(train: np.ndarray, labels: np.ndarray, wanted: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    if train.shape[1] == 0 or (labels == labels[0]).all():
        return [np.full(len(points), np.bincount(labels).argmax()) for points in wanted]
    from sklearn.linear_model import LogisticRegression

    # Several BLAS threads wait for each other longer than such small products take.
    with warnings.catch_warnings(), one_blas_thread():
        # A fit that stops at its iteration limit is a linear classifier, too.
        warnings.filterwarnings("ignore", message=".*converge.*")
        model = LogisticRegression().fit(train, labels)
    return [model.predict(points) for points in wanted]
