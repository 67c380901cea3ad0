"""Binned codes against factors: the host or CUDA kernels, or numpy, with the same counts.

Bins are equal-width between a code's minimum and maximum, with float64 edges ``numpy.linspace(min, max, bins + 1)``
also for float32 codes; the label of x is ``#{edges[:-1] <= x} - 1``. Codes that lie on edges (grid-valued latents) are
labelled exactly; ``floor((x - min) * bins / (max - min))`` mislabels them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from .. import _native
from . import _device


@functools.cache
def host() -> ModuleType | None:
    """``strucfast._host``, or None where it is missing: numpy then computes the same numbers, more slowly."""
    try:
        return _native.host()
    except RuntimeError:
        return None


def column_range(values: np.ndarray | torch.Tensor, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum of each column of (N, C) values; ValueError naming the first value that is not finite."""
    if isinstance(values, torch.Tensor):
        return _device.column_range(values, name)
    module = host()
    if module is not None:
        low, high, finite = module.column_range(values, module.default_threads())
    else:
        low, high = values.min(axis=0), values.max(axis=0)
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
    if not finite:
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"{name}: expected finite values, got {values[row, column]} in row {row}, column {column}")
    return low, high


def bin_edges(codes: np.ndarray | torch.Tensor, bins: int, name: str = "codes") -> np.ndarray:
    """(D, bins + 1) float64 edges of the codes (N, D); a constant code gets +-0.5 around its value."""
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise ValueError(f"bins: expected a positive integer, got {bins!r}")
    low, high = (end.astype(np.float64) for end in column_range(codes, name))
    constant = low == high
    low, high = np.where(constant, low - 0.5, low), np.where(constant, high + 0.5, high)
    with np.errstate(over="ignore", invalid="ignore"):
        edges = np.arange(bins + 1) * ((high - low) / bins)[:, None] + low[:, None]
    edges[:, -1] = high
    if not np.isfinite(edges).all():
        raise ValueError(f"{name}: the range of column {int(np.argwhere(~np.isfinite(edges))[0, 0])} overflows float64")
    return edges


def bin_labels(codes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(N, D) int32 labels in [0, bins)."""
    module = host()
    if module is not None:
        return module.bin_labels(codes, edges, module.default_threads())
    labels = np.empty(codes.shape, np.int32)
    for d, inner in enumerate(edges[:, 1:-1]):
        labels[:, d] = np.searchsorted(inner, codes[:, d].astype(np.float64), side="right")
    return labels


@dataclass(frozen=True)
class JointCounts:
    """Exact counts of binned codes against factor values.

    Attributes:
        counts: (D, bins, V) int64, V the values of all factors side by side.
        starts: (K + 1,) where each factor's values start in V.
    """

    counts: np.ndarray
    starts: np.ndarray

    def per_factor(self, table: np.ndarray) -> np.ndarray:
        """Sum the last axis (V) within each factor: (..., K)."""
        return np.add.reduceat(table, self.starts[:-1], axis=-1)

    @functools.cached_property
    def num_samples(self) -> int:
        return int(self.code_counts[0].sum())

    @functools.cached_property
    def code_counts(self) -> np.ndarray:
        """(D, bins)."""
        return self.counts[:, :, : self.starts[1]].sum(axis=-1)

    @functools.cached_property
    def factor_counts(self) -> np.ndarray:
        """(V,)."""
        return self.counts[0].sum(axis=0)

    def mutual_information(self) -> np.ndarray:
        """(D, K) mutual information in nats: exactly 0 where the counts are those of independence."""
        n = self.num_samples
        # Products of integers below 2^53 are exact, so that independent counts have ratio 1 and logarithm 0.
        expected = self.code_counts[:, :, None].astype(np.float64) * self.factor_counts
        observed = self.counts.astype(np.float64)
        ratio = np.maximum(observed, 1) * n
        ratio /= np.maximum(expected, 1)
        observed *= np.log(ratio, out=ratio)
        return np.maximum(self.per_factor(observed.sum(axis=1)) / n, 0.0)

    def code_entropy(self) -> np.ndarray:
        """(D,) entropy of each binned code in nats."""
        return _entropy_terms(self.code_counts, self.num_samples).sum(axis=-1)

    def factor_entropy(self) -> np.ndarray:
        """(K,) sample entropy of each factor in nats."""
        return self.per_factor(_entropy_terms(self.factor_counts, self.num_samples))


def _entropy_terms(counts: np.ndarray, n: int) -> np.ndarray:
    # log(n / count), not -log(count / n): a single class then gives +0, not -0.
    return counts / n * np.log(n / np.maximum(counts, 1))


def _dense(factors: np.ndarray | torch.Tensor) -> tuple[np.ndarray | torch.Tensor, np.ndarray, np.ndarray]:
    """Factors, their smallest values and their numbers of values; sparse values (10, 2000, 10**9) become ranks."""
    low, high = column_range(factors, "factors")
    # In Python integers: the difference of two int64 may overflow.
    spans = [int(b) - int(a) + 1 for a, b in zip(low, high)]
    sparse = [k for k, span in enumerate(spans) if span > max(256, 2 * len(factors))]
    if sparse:
        on_device = isinstance(factors, torch.Tensor)
        factors = factors.clone() if on_device else factors.copy()
        for k in sparse:
            unique = torch.unique if on_device else np.unique
            values, factors[:, k] = unique(factors[:, k], return_inverse=True)
            low[k], spans[k] = 0, len(values)
    return factors, low, np.asarray(spans, dtype=np.int64)


def joint_counts(codes: np.ndarray | torch.Tensor, factors: np.ndarray | torch.Tensor, bins: int) -> JointCounts:
    """Counts of the binned codes (N, D) float against the factors (N, K) int64, in one pass over the rows.

    Both are checked arrays, or both tensors on a GPU, of which only the counts leave it.
    """
    edges = bin_edges(codes, bins)
    factors, low, sizes = _dense(factors)
    starts = np.concatenate(([0], np.cumsum(sizes)))
    if isinstance(codes, torch.Tensor):
        return JointCounts(_device.joint_counts(codes, edges, factors, low, starts), starts)
    module = host()
    if module is not None:
        counts = module.joint_histogram(codes, edges, factors, low, sizes, module.default_threads())
        return JointCounts(counts, starts)
    labels = bin_labels(codes, edges)
    counts = np.empty((codes.shape[1], bins, starts[-1]), np.int64)
    for k, size in enumerate(sizes):
        values = factors[:, k] - low[k]
        for d in range(codes.shape[1]):
            cells = np.bincount(labels[:, d] * size + values, minlength=bins * size)
            counts[d, :, starts[k] : starts[k + 1]] = cells.reshape(bins, size)
    return JointCounts(counts, starts)
