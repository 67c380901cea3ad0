"""Frechet distance between two sets of features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import check_codes, check_finite
from ._result import Result, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class FrechetResult(Result):
    """What :func:`frechet_distance` returns.

    Attributes:
        score: the distance, ``mean_term + covariance_term``: the square of the 2-Wasserstein distance of the Gaussians.
        mean_term: |m_x - m_y|^2. covariance_term: tr(C_x + C_y - 2 (C_x C_y)^(1/2)), >= 0.
        num_x, num_y, num_features: of the estimate.
    """

    score: float
    mean_term: float
    covariance_term: float
    num_x: int
    num_y: int
    num_features: int

    name = "frechet_distance"

    def __str__(self) -> str:
        counts = f"{self.num_x} and {self.num_y} samples, {self.num_features} features"
        title = f"Frechet distance {self.score:.4f}  ({counts})"
        return table(title, ["means", "covariances"], [("part", [self.mean_term, self.covariance_term])])

    def plot(self, ax: Axes | None = None) -> Axes:
        """The two parts of the distance as bars, on ``ax`` or a new figure."""
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(3.2, 2.8), layout="constrained").add_subplot()
        ax.bar(["means", "covariances"], [self.mean_term, self.covariance_term])
        ax.set_title(f"Frechet distance {self.score:.3f}")
        return ax


def frechet_distance(features_x: Any, features_y: Any) -> FrechetResult:
    """Frechet distance of two sets of features (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule").

    ``|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))``, with means and sample covariances (N - 1) of the features.
    With features of an Inception-v3 network this is the FID; any extractor will do, see :func:`extract_features`. All
    in float64: torch features of any device are taken to the host.

    Args:
        features_x: (N, F). features_y: (M, F); numpy or torch, N, M >= 2.

    Returns:
        :class:`FrechetResult`. Biased upwards where N is not much larger than F: compare at equal N only.

    Raises:
        ValueError: shapes that do not belong together, fewer than two rows, features that are not finite.
    """
    moments = []
    for name, features in (("features_x", features_x), ("features_y", features_y)):
        array = check_codes(features, name).astype(np.float64, copy=False)
        check_finite(array, name)
        if len(array) < 2:
            raise ValueError(f"{name}: expected at least two rows, got {len(array)}")
        mean = array.mean(axis=0)
        centred = array - mean
        moments.append((mean, centred.T @ centred / (len(array) - 1), len(array)))
    (mean_x, covariance_x, num_x), (mean_y, covariance_y, num_y) = moments
    if len(mean_x) != len(mean_y):
        raise ValueError(f"features_y: expected {len(mean_x)} columns as features_x, got {len(mean_y)}")
    parts = _parts(mean_x, covariance_x, mean_y, covariance_y)
    return FrechetResult(sum(parts), *parts, num_x=num_x, num_y=num_y, num_features=len(mean_x))


def frechet_from_moments(mean_x: Any, covariance_x: Any, mean_y: Any, covariance_y: Any) -> float:
    """The distance of two Gaussians: means (F,), covariances (F, F), symmetric and positive semidefinite.

    For statistics on file. Commuting covariances with standard deviations s, t give ``|m_x - m_y|^2 + |s - t|^2``.
    """
    means, covariances = [], []
    for name, mean, matrix in (("x", mean_x, covariance_x), ("y", mean_y, covariance_y)):
        mean, matrix = np.asarray(mean, np.float64), np.asarray(matrix, np.float64)
        if mean.ndim != 1 or len(mean) == 0 or matrix.shape != (len(mean), len(mean)):
            shapes = f"{mean.shape} and {matrix.shape}"
            raise ValueError(f"mean_{name}, covariance_{name}: expected shapes (F,) and (F, F), got {shapes}")
        if not (np.isfinite(mean).all() and np.isfinite(matrix).all()):
            raise ValueError(f"mean_{name}, covariance_{name}: expected finite values")
        if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-8 * np.abs(matrix).max()):
            raise ValueError(f"covariance_{name}: expected a symmetric matrix")
        means.append(mean)
        covariances.append(matrix)
    if len(means[0]) != len(means[1]):
        raise ValueError(f"mean_y: expected {len(means[0])} features as mean_x, got {len(means[1])}")
    return sum(_parts(means[0], covariances[0], means[1], covariances[1]))


def _parts(mean_x, covariance_x, mean_y, covariance_y) -> tuple[float, float]:
    # tr (C_x C_y)^(1/2) is the sum of the singular values of S_x S_y, S = C^(1/2): no root of a product that is
    # not symmetric, and singular covariances need no ridge.
    roots = []
    for matrix in (covariance_x, covariance_y):
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        # Rounding leaves eigenvalues of 1e-16 where there should be 0; their roots of 1e-8 would add up.
        values[values < len(values) * np.finfo(np.float64).eps * values[-1]] = 0.0
        roots.append(vectors * np.sqrt(values))
    cross = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    spread = float(np.trace(covariance_x) + np.trace(covariance_y) - 2 * cross)
    return float(np.square(mean_x - mean_y).sum()), max(spread, 0.0)


def extract_features(
    images: Any,
    extractor: Callable[[Any], Any],
    *,
    batch_size: int = 64,
    device: Any = None,
    as_float: bool = True,
) -> np.ndarray:
    """Features (N, F) of images (N, H, W, C) uint8, batch by batch and without gradient.

    Args:
        images: anything that slices to numpy arrays (an array, an h5py data set).
        extractor: module or function of a tensor (B, C, H, W) -> (B, F); a module is put into evaluation mode and
            back. torchmetrics' Inception-v3 is one, if you have it and its weights (then ``as_float=False``).
        device: where the batches go; default the CPU.
        as_float: float32 in [0, 1]; False leaves uint8.

    Raises:
        ValueError: images or features of another shape or dtype.
    """
    import torch

    if len(np.shape(images)) != 4 or 0 in np.shape(images) or np.asarray(images[:1]).dtype != np.uint8:
        raise ValueError(f"images: expected uint8 (N, H, W, C), got {np.asarray(images[:1]).dtype} {np.shape(images)}")
    training = getattr(extractor, "training", None)
    if training:
        extractor.eval()
    parts = []
    try:
        with torch.no_grad():
            for begin in range(0, len(images), batch_size):
                batch = torch.from_numpy(np.ascontiguousarray(images[begin : begin + batch_size])).to(device or "cpu")
                batch = batch.permute(0, 3, 1, 2)
                found = extractor(batch.float() / 255 if as_float else batch)
                if not torch.is_tensor(found) or found.shape[:1] != batch.shape[:1] or found.dim() != 2:
                    got = tuple(found.shape) if torch.is_tensor(found) else type(found).__name__
                    raise ValueError(f"extractor: expected features ({len(batch)}, F), got {got}")
                parts.append(found.float().cpu().numpy())
    finally:
        if training:
            extractor.train()
    return np.concatenate(parts)
