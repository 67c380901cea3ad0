"""Disentanglement, completeness and informativeness (DCI)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import check_codes, check_factors, check_finite, check_names, check_real_factors
from ._predictors import PREDICTORS, fit
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class DCIResult(Result):
    """What :func:`dci` returns.

    Attributes:
        disentanglement: mean of ``disentanglement_per_code``, weighted by each code's share of all importance.
        completeness: mean of ``completeness_per_factor``, weighted by each factor's share of all importance.
        completeness_unweighted: plain mean over the factors that any code is important for.
        informativeness_train, informativeness_test: mean over the factors of accuracy (discrete factors) or R^2
            (continuous ones).
        importance: (D, K), columns sum to 1 (to 0 where nothing predicts the factor).
        disentanglement_per_code: (D,), 0 for a code of no importance.
        completeness_per_factor: (K,), 0 for a factor that nothing is important for.
        accuracy_train, accuracy_test: (K,).
        predictor, num_train, num_test: of the estimate.
        code_names, factor_names: D and K names, or None.
    """

    disentanglement: float
    completeness: float
    completeness_unweighted: float
    informativeness_train: float
    informativeness_test: float
    importance: np.ndarray
    disentanglement_per_code: np.ndarray
    completeness_per_factor: np.ndarray
    accuracy_train: np.ndarray
    accuracy_test: np.ndarray
    predictor: str
    num_train: int
    num_test: int
    code_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None

    name = "dci"

    @property
    def score(self) -> float:
        """The disentanglement, by which models are compared as a rule."""
        return self.disentanglement

    def __str__(self) -> str:
        codes = default_names(self.code_names, "z", len(self.importance))
        factors = default_names(self.factor_names, "v", self.importance.shape[1])
        rows = [(name, [*row, own]) for name, row, own in zip(codes, self.importance, self.disentanglement_per_code)]
        rows += [
            ("completeness", [*self.completeness_per_factor, np.nan]),
            ("train", [*self.accuracy_train, np.nan]),
            ("test", [*self.accuracy_test, np.nan]),
        ]
        title = (
            f"DCI disentanglement {self.disentanglement:.4f}, completeness {self.completeness:.4f}, informativeness"
            f" {self.informativeness_test:.4f}  ({self.predictor}, {self.num_train}/{self.num_test} samples)"
        )
        return table(title, [*factors, "disentangled"], rows, rules=(len(codes),))

    def plot(self, ax: Axes | None = None) -> Axes:
        """The importances as a D x K matrix, on ``ax`` or a new figure."""
        codes = default_names(self.code_names, "z", len(self.importance))
        factors = default_names(self.factor_names, "v", self.importance.shape[1])
        return matrix_axes(self.importance, codes, factors, f"DCI {self.disentanglement:.3f}", ax)


def dci_from_importance(importance: Any) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Disentanglement and completeness of an importance matrix (Eastwood & Williams 2018, section 2).

    ``D_i = 1 - H_K(R_i. / sum_k R_ik)`` with weights ``sum_k R_ik`` and ``C_k = 1 - H_D(R_.k / sum_i R_ik)`` with
    weights ``sum_i R_ik``, entropies to base K and D; a row or column of zeros scores 0 and has weight 0; with a single
    factor every code, with a single code every factor scores 1.

    Args:
        importance: (D, K), finite and >= 0.

    Returns:
        disentanglement, completeness, and the scores per code (D,) and per factor (K,).
    """
    matrix = np.asarray(importance, np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"importance: expected a non-empty array (D, K), got shape {matrix.shape}")
    if not (np.isfinite(matrix).all() and (matrix >= 0).all()):
        raise ValueError("importance: expected finite values >= 0")
    total = matrix.sum()
    per_code, per_factor = _one_minus_entropy(matrix), _one_minus_entropy(matrix.T)
    if total == 0:
        return 0.0, 0.0, per_code, per_factor
    weights = matrix.sum(axis=1) / total, matrix.sum(axis=0) / total
    return float(weights[0] @ per_code), float(weights[1] @ per_factor), per_code, per_factor


def _one_minus_entropy(matrix: np.ndarray) -> np.ndarray:
    """``1 - H(row / its sum)`` to the base of the row's length; 0 for rows of zeros."""
    total = matrix.sum(axis=1)
    if matrix.shape[1] == 1:
        return (total > 0).astype(np.float64)
    share = matrix / np.where(total > 0, total, 1.0)[:, None]
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1) / np.log(matrix.shape[1])
    return np.where(total > 0, 1.0 - entropy, 0.0)


def dci(
    codes_train: Any,
    factors_train: Any,
    codes_test: Any,
    factors_test: Any,
    *,
    predictor: str = "gbt",
    bins: int | None = None,
    continuous: bool = False,
    seed: int = 0,
    code_names: Any = None,
    factor_names: Any = None,
) -> DCIResult:
    """Disentanglement, completeness, informativeness (Eastwood & Williams 2018).

    A predictor per factor gives the importance of every code for it; a code is disentangled if it is important for one
    factor, a factor completely represented if one code is important for it, and informativeness is how well the factors
    are predicted. The default predictor has the meaning of scikit-learn's ``GradientBoostingClassifier()``, as in
    Locatello et al. 2019, computed by strucfast's own kernel: all factors at once, exact splits.

    Args:
        codes_train, codes_test: (N, D) and (M, D) latent codes, numpy or torch. With "gbt" and training codes on a GPU
            everything is fitted there.
        factors_train, factors_test: (N, K) and (M, K) integer factor values; real numbers with ``continuous``.
        predictor: "gbt" (boosted trees), "random_forest", "extra_trees", "logistic" (discrete factors only) or "lasso"
            (continuous factors only); the last four are scikit-learn's.
        bins: for "gbt": None tries every split; 256, say, first merges a code's values into so many bins, about
            equal in weight and in width, which is two to three times faster and moves scores in the third digit.
        continuous: factors are real numbers, predicted by regression and judged by R^2.
        seed: of what is random: which of several codes that split equally well is taken, the forests' samples.
        code_names, factor_names: D and K names for the printed table.

    Returns:
        :class:`DCIResult`.

    Raises:
        ValueError: empty arrays, shapes that do not belong together, codes that are not finite, discrete factors that
            are not integers, no factor with two values, an unknown predictor. TypeError: not numbers.
    """
    codes_train = check_codes(codes_train, "codes_train", keep_device=predictor == "gbt")
    codes_test = check_codes(codes_test, "codes_test", like=codes_train)
    check_finite(codes_train, "codes_train")
    check_finite(codes_test, "codes_test")
    if codes_train.shape[1] != codes_test.shape[1]:
        expected = codes_train.shape[1]
        raise ValueError(f"codes_test: expected {expected} columns as codes_train, got {codes_test.shape[1]}")
    check = check_real_factors if continuous else check_factors
    factors_train = check(factors_train, len(codes_train), "factors_train", like=codes_train)
    factors_test = check(factors_test, len(codes_test), "factors_test", like=codes_test)
    if factors_train.shape[1] != factors_test.shape[1]:
        expected = factors_train.shape[1]
        raise ValueError(f"factors_test: expected {expected} columns as factors_train, got {factors_test.shape[1]}")
    if predictor not in PREDICTORS:
        raise ValueError(f"predictor: expected one of {', '.join(PREDICTORS)}, got {predictor!r}")
    if bins is not None and (predictor != "gbt" or isinstance(bins, bool) or not isinstance(bins, int) or bins < 2):
        raise ValueError(f'bins: expected None, or with predictor="gbt" an integer of at least 2, got {bins!r}')
    if (factors_train == factors_train[0]).all():
        raise ValueError("factors_train: expected a factor with at least two values, got one value each")
    code_names = check_names("code_names", code_names, codes_train.shape[1])
    factor_names = check_names("factor_names", factor_names, factors_train.shape[1])
    fitted = fit(
        predictor, codes_train, factors_train, codes_test, factors_test, continuous=continuous, bins=bins, seed=seed
    )
    disentanglement, completeness, per_code, per_factor = dci_from_importance(fitted.importance)
    known = fitted.importance.sum(axis=0) > 0
    return DCIResult(
        disentanglement=disentanglement,
        completeness=completeness,
        completeness_unweighted=float(per_factor[known].mean()) if known.any() else 0.0,
        informativeness_train=float(fitted.train.mean()),
        informativeness_test=float(fitted.test.mean()),
        importance=fitted.importance,
        disentanglement_per_code=per_code,
        completeness_per_factor=per_factor,
        accuracy_train=fitted.train,
        accuracy_test=fitted.test,
        predictor=predictor if bins is None else f"{predictor}, {bins} bins",
        num_train=len(codes_train),
        num_test=len(codes_test),
        code_names=code_names,
        factor_names=factor_names,
    )
