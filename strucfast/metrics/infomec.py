"""InfoMEC: modularity, explicitness and compactness by information."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._histogram import joint_counts
from ._inputs import check_codes, check_factors, check_finite, check_names
from ._logistic import one_blas_thread
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Codes whose range is a smaller share of the largest one carry nothing.
_ACTIVE_RANGE = 1 / 20


@dataclass(frozen=True, repr=False)
class InfoMECResult(Result):
    """What :func:`infomec` returns.

    Attributes:
        modularity: InfoM, mean over active codes of how far each informs about one factor only, in [0, 1].
        explicitness: InfoE, mean of ``explicitness_per_factor``, in [0, 1].
        compactness: InfoC, mean over factors of how far a single active code informs about each, in [0, 1].
        information: (D, K) mutual information over the factor's entropy.
        modularity_per_code: (D,) InfoM's terms, NaN for an inactive code.
        compactness_per_factor, explicitness_per_factor: (K,), NaN for a factor with a single value.
        active: (D,) which codes took part in InfoM and InfoC.
        bins: a code, None where its distinct values are the categories. num_samples: of the estimate.
        code_names, factor_names: D and K names, or None.
    """

    modularity: float
    explicitness: float
    compactness: float
    information: np.ndarray
    modularity_per_code: np.ndarray
    compactness_per_factor: np.ndarray
    explicitness_per_factor: np.ndarray
    active: np.ndarray
    bins: int | None
    num_samples: int
    code_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None

    name = "infomec"

    @property
    def score(self) -> float:
        """InfoM, by which disentanglement is compared."""
        return self.modularity

    def __str__(self) -> str:
        codes, factors = self._names()
        rows = [(n, [*row, own]) for n, row, own in zip(codes, self.information, self.modularity_per_code)]
        rows += [
            ("compactness", [*self.compactness_per_factor, np.nan]),
            ("explicitness", [*self.explicitness_per_factor, np.nan]),
        ]
        title = (
            f"InfoM {self.modularity:.4f}, InfoE {self.explicitness:.4f}, InfoC {self.compactness:.4f}"
            f"  ({self.num_samples} samples, {'discrete codes' if self.bins is None else f'{self.bins} bins'})"
        )
        return table(title, [*factors, "modular"], rows, rules=(len(codes),))

    def plot(self, ax: Axes | None = None) -> Axes:
        """The normalised information as a D x K matrix, on ``ax`` or a new figure."""
        return matrix_axes(self.information, *self._names(), f"InfoM {self.modularity:.3f}", ax)

    def _names(self) -> tuple[list[str], list[str]]:
        codes, factors = self.information.shape
        return default_names(self.code_names, "z", codes), default_names(self.factor_names, "v", factors)


def infomec(
    codes: Any, factors: Any, bins: int | None = 20, *, code_names: Any = None, factor_names: Any = None
) -> InfoMECResult:
    """InfoM, InfoE and InfoC (Hsu et al. 2023, "Disentanglement via Latent Quantization", section 4).

    With ``N_jk = I(z_j; v_k) / H(v_k)``, InfoM is the mean over active codes of ``(max_k N_jk / sum_k N_jk - 1/K) /
    (1 - 1/K)``, InfoC the mean over factors of the same along codes, and InfoE the mean over factors of ``1 - L_k /
    H(v_k)``, L_k the cross-entropy in nats of a logistic regression without penalty, fitted to the same rows.

    Args:
        codes: (N, D) latent codes, posterior means as a rule; numpy or torch.
        factors: (N, K) integer factor values.
        bins: equal-width bins a code. None: the codes are discrete (quantised latents), every distinct value is a
            category, and the regression sees them one-hot instead of standardised. (The authors' code estimates the
            information of continuous codes from nearest neighbours, and weighs the classes of the regression equally.)
        code_names, factor_names: D and K names for the printed table.

    Returns:
        :class:`InfoMECResult`. A code is active if its range is more than a twentieth of the largest one (if it varies
        at all, where ``bins`` is None), as in the authors' code. A code or factor without information counts 0. With a
        single factor every informative code counts 1, with a single active code every factor it informs about.

    Raises:
        ValueError: empty arrays, shapes that do not belong together, codes that are not finite, factors that are not
            integers, no factor with two values. TypeError: not numbers.
    """
    codes = check_codes(codes)
    check_finite(codes)
    factors = check_factors(factors, len(codes))
    code_names = check_names("code_names", code_names, codes.shape[1])
    factor_names = check_names("factor_names", factor_names, factors.shape[1])
    spread = codes.max(axis=0).astype(np.float64) - codes.min(axis=0)
    active = spread > (0.0 if bins is None else spread.max() * _ACTIVE_RANGE)
    labels = codes
    if bins is None:
        labels = np.stack([np.unique(column, return_inverse=True)[1] for column in codes.T], axis=1)
        labels = labels.astype(np.float64)
    # As many bins as categories leaves each category a bin of its own.
    counts = joint_counts(labels, factors, int(labels.max()) + 1 if bins is None else bins)
    entropy = counts.factor_entropy()
    varies = entropy > 0
    if not varies.any():
        raise ValueError("factors: expected a factor with at least two values, got one value each")
    information = counts.mutual_information() / np.where(varies, entropy, 1.0)
    shown = information[np.ix_(active, varies)]
    modularity, compactness = np.full(codes.shape[1], np.nan), np.full(len(entropy), np.nan)
    modularity[active] = _concentration(shown)
    compactness[varies] = _concentration(shown.T)
    explicitness = np.full(len(entropy), np.nan)
    features = _one_hot(labels) if bins is None else _standardised(codes)
    for k in np.flatnonzero(varies):
        explicitness[k] = np.clip(1 - _cross_entropy(features, factors[:, k], entropy[k]) / entropy[k], 0.0, 1.0)
    return InfoMECResult(
        modularity=float(modularity[active].mean()) if active.any() else 0.0,
        explicitness=float(explicitness[varies].mean()),
        compactness=float(compactness[varies].mean()),
        information=information,
        modularity_per_code=modularity,
        compactness_per_factor=compactness,
        explicitness_per_factor=explicitness,
        active=active,
        bins=None if bins is None else int(bins),
        num_samples=len(codes),
        code_names=code_names,
        factor_names=factor_names,
    )


def _concentration(rows: np.ndarray) -> np.ndarray:
    """Per row how far its sum lies in one entry: 0 for equal entries or zeros, 1 for a single one."""
    count = rows.shape[1]
    if count == 0:
        return np.zeros(len(rows))
    total, most = rows.sum(axis=1), rows.max(axis=1)
    if count == 1:
        return (total > 0).astype(np.float64)
    share = np.where(total > 0, most / np.where(total > 0, total, 1.0), 1 / count)
    return (share - 1 / count) / (1 - 1 / count)


def _standardised(codes: np.ndarray) -> np.ndarray:
    values = codes[:, codes.min(axis=0) < codes.max(axis=0)].astype(np.float64)
    return (values - values.mean(axis=0)) / values.std(axis=0)


def _one_hot(labels: np.ndarray) -> Any:
    from scipy.sparse import csr_array

    rows, columns = labels.shape
    sizes = labels.max(axis=0).astype(np.int64) + 1
    places = labels.astype(np.int64) + np.concatenate(([0], np.cumsum(sizes[:-1])))
    # Kept sparse: one entry a code and row.
    starts = np.arange(0, rows * columns + 1, columns)
    return csr_array((np.ones(rows * columns), places.reshape(-1), starts), shape=(rows, int(sizes.sum())))


def _cross_entropy(features: Any, labels: np.ndarray, entropy: float) -> float:
    if features.shape[1] == 0:
        return entropy
    from sklearn.linear_model import LogisticRegression

    # Several BLAS threads wait for each other longer than such small products take.
    with warnings.catch_warnings(), one_blas_thread():
        # Separable classes have no best weights: the fit runs to its iteration limit, its cross-entropy near 0.
        warnings.filterwarnings("ignore", message=".*converge.*")
        model = LogisticRegression(C=np.inf).fit(features, labels)
        scores = model.decision_function(features)
    if scores.ndim == 1:
        scores = np.stack([np.zeros(len(scores)), scores], axis=1)
    # Not log(predict_proba): probabilities that round to 0 have a logarithm all the same.
    scores -= scores.max(axis=1, keepdims=True)
    own = scores[np.arange(len(labels)), np.searchsorted(model.classes_, labels)]
    return float((np.log(np.exp(scores).sum(axis=1)) - own).mean())
