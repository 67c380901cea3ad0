"""Unsupervised disentanglement ranking (UDR)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import check_codes, check_finite, check_names
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class UDRResult(Result):
    """What :func:`udr` returns.

    Attributes:
        score: mean of ``per_model``.
        per_model: (M,) median of each column of ``pairwise`` without the diagonal: the ranking.
        pairwise: (M, M) how far model i's codes and model j's are a relabelling of each other; NaN on the diagonal.
        informative: (M,) how many codes of each model took part.
        similarity, num_samples: of the estimate.
        model_names: M names, or None.
    """

    score: float
    per_model: np.ndarray
    pairwise: np.ndarray
    informative: np.ndarray
    similarity: str
    num_samples: int
    model_names: tuple[str, ...] | None = None

    name = "udr"

    def __str__(self) -> str:
        names = default_names(self.model_names, "model ", len(self.per_model))
        columns = zip(names, self.pairwise, self.informative, self.per_model)
        rows = [(name, [*row, count, own]) for name, row, count, own in columns]
        title = f"UDR {self.score:.4f}  ({self.similarity}, {self.num_samples} samples)"
        return table(title, [*names, "informative", "UDR"], rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The pairwise scores as an M x M matrix, on ``ax`` or a new figure."""
        names = default_names(self.model_names, "model ", len(self.per_model))
        return matrix_axes(np.nan_to_num(self.pairwise, nan=1.0), names, names, f"UDR {self.score:.3f}", ax)


def udr(
    codes: Sequence[Any],
    *,
    similarity: str = "lasso",
    kl: Sequence[Any] | None = None,
    kl_threshold: float = 0.01,
    model_names: Any = None,
) -> UDRResult:
    """Unsupervised disentanglement ranking (Duan et al. 2020, "Unsupervised Model Selection for Variational
    Disentangled Representation Learning", equation 3).

    Models that differ in their seed only agree up to the order and signs of their codes where they are disentangled.
    With ``R`` (D_i, D_j) the similarities between the standardised codes of two models on the same images, a pair
    scores the mean over informative codes of ``max R^2 / sum R`` along either axis, both axes averaged.

    Args:
        codes: of at least two models, (N, D_m) each, of the same N images in the same order; numpy or torch.
        similarity: "lasso", absolute weights of a Lasso (alpha = 0.1) that predicts model j's codes from model i's; or
            "spearman", absolute rank correlations.
        kl: (D_m,) of each model, mean KL of each code to the prior in nats; codes at or below ``kl_threshold`` do not
            take part, as they are not informative. None: every code that varies does.
        model_names: M names for the printed table.

    Returns:
        :class:`UDRResult`. A pair scores 0 where a model has no informative code; a code that is similar to none
        scores 0. Constant codes never take part.

    Raises:
        ValueError: fewer than two models, empty arrays, numbers of rows that differ, codes or KLs that are not finite,
            an unknown similarity. TypeError: not numbers.
    """
    if similarity not in ("lasso", "spearman"):
        raise ValueError(f"similarity: expected 'lasso' or 'spearman', got {similarity!r}")
    arrays = [check_codes(one, f"codes[{m}]") for m, one in enumerate(codes)]
    if len(arrays) < 2:
        raise ValueError(f"codes: expected arrays of at least two models, got {len(arrays)}")
    for m, array in enumerate(arrays):
        check_finite(array, f"codes[{m}]")
        if len(array) != len(arrays[0]):
            raise ValueError(f"codes[{m}]: expected {len(arrays[0])} rows as codes[0], got {len(array)}")
    masks = [array.min(axis=0) < array.max(axis=0) for array in arrays]
    if kl is not None:
        masks = [mask & _informative(kl, m, len(arrays), mask.shape, kl_threshold) for m, mask in enumerate(masks)]
    names = check_names("model_names", model_names, len(arrays))
    prepare = _ranks if similarity == "spearman" else np.asarray
    ready = [_standardised(prepare(array[:, mask].astype(np.float64))) for array, mask in zip(arrays, masks)]
    count = len(ready)
    pairwise = np.full((count, count), np.nan)
    for i in range(count):
        for j in range(count):
            if i != j:
                pairwise[i, j] = _pair(ready[i], ready[j], similarity)
    others = ~np.eye(count, dtype=bool)
    per_model = np.array([np.median(pairwise[others[:, j], j]) for j in range(count)])
    return UDRResult(
        score=float(per_model.mean()),
        per_model=per_model,
        pairwise=pairwise,
        informative=np.array([mask.sum() for mask in masks]),
        similarity=similarity,
        num_samples=len(arrays[0]),
        model_names=names,
    )


def _informative(kl: Sequence[Any], model: int, models: int, shape: tuple[int, ...], threshold: float) -> np.ndarray:
    if len(kl) != models:
        raise ValueError(f"kl: expected one array for each of the {models} models, got {len(kl)}")
    values = np.asarray(kl[model].detach().cpu() if hasattr(kl[model], "detach") else kl[model], np.float64)
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(f"kl[{model}]: expected finite values of shape {shape}, got {values}")
    return values > threshold


def _standardised(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(axis=0)
    return centred / centred.std(axis=0)


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(values, axis=0)


def _pair(first: np.ndarray, second: np.ndarray, similarity: str) -> float:
    if 0 in (first.shape[1], second.shape[1]):
        return 0.0
    if similarity == "spearman":
        matrix = np.abs(first.T @ second) / len(first)
    else:
        matrix = _lasso(first, second)
    shares = []
    for axis in (0, 1):
        total = matrix.sum(axis=axis)
        shares.append((np.square(matrix.max(axis=axis)) / np.where(total > 0, total, 1.0)).mean())
    return float(np.mean(shares))


def _lasso(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import Lasso

    with warnings.catch_warnings():
        # Codes that say the same make coordinate descent creep; the weights it stops at are scored.
        warnings.filterwarnings("ignore", message=".*converge.*")
        model = Lasso(alpha=0.1, precompute=True).fit(first, second)
    return np.abs(np.atleast_2d(model.coef_)).T
