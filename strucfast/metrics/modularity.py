"""Modularity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._histogram import joint_counts
from ._inputs import check_codes, check_factors, check_names
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class ModularityResult(Result):
    """What :func:`modularity` returns.

    Attributes:
        score: mean of ``per_code`` over all codes; a code that tells nothing about any factor counts with 0.
        active_only: mean over the codes that tell something; 0 where none does.
        per_code: (D,) in [0, 1].
        mutual_information: (D, K) in nats, binned codes against factors.
        bins, num_samples: of the estimate.
        code_names, factor_names: D and K names, or None.
    """

    score: float
    active_only: float
    per_code: np.ndarray
    mutual_information: np.ndarray
    bins: int
    num_samples: int
    code_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None

    name = "modularity"

    def __str__(self) -> str:
        codes, factors = self._names()
        rows = [(name, [*row, own]) for name, row, own in zip(codes, self.mutual_information, self.per_code)]
        title = (
            f"Modularity {self.score:.4f}, of active codes {self.active_only:.4f}"
            f"  ({self.num_samples} samples, {self.bins} bins, mutual information in nats)"
        )
        return table(title, [*factors, "modular"], rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Each code's mutual information over its largest as a D x K matrix, on ``ax`` or a new figure."""
        largest = self.mutual_information.max(axis=1, keepdims=True)
        shares = self.mutual_information / np.where(largest > 0, largest, 1.0)
        return matrix_axes(shares, *self._names(), f"Modularity {self.score:.3f}", ax)

    def _names(self) -> tuple[list[str], list[str]]:
        codes, factors = self.mutual_information.shape
        return default_names(self.code_names, "z", codes), default_names(self.factor_names, "v", factors)


def modularity_from_information(information: Any) -> tuple[float, float, np.ndarray]:
    """Modularity of a matrix of mutual information (Ridgeway & Mozer 2018, section 3, eq. 2 and 3).

    A code's modularity is ``1 - sum_{k != k*} I_k^2 / (I_{k*}^2 (K - 1))`` with ``k*`` the factor of largest
    information: 1 if the code tells about one factor only, 0 if it tells as much about all. A row of zeros scores 0;
    with a single factor every other row scores 1.

    Args:
        information: (D, K), finite and >= 0.

    Returns:
        mean over all codes, mean over the codes with any information (0 where there is none), and the scores (D,).
    """
    matrix = np.asarray(information, np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"information: expected a non-empty array (D, K), got shape {matrix.shape}")
    if not (np.isfinite(matrix).all() and (matrix >= 0).all()):
        raise ValueError("information: expected finite values >= 0")
    largest = matrix.max(axis=1)
    active = largest > 0
    # Divided first: the square of a small information may underflow.
    share = np.square(matrix / np.where(active, largest, 1.0)[:, None])
    others = max(matrix.shape[1] - 1, 1)
    per_code = np.where(active, 1.0 - (share.sum(axis=1) - 1.0) / others, 0.0)
    return float(per_code.mean()), float(per_code[active].mean()) if active.any() else 0.0, per_code


def modularity(
    codes: Any, factors: Any, bins: int = 20, *, code_names: Any = None, factor_names: Any = None
) -> ModularityResult:
    """Modularity (Ridgeway & Mozer 2018, "Learning Deep Disentangled Embeddings with the F-Statistic Loss").

    Whether each code tells about one factor only: see :func:`modularity_from_information`. Mutual information is that
    of equal-width bins, as in :func:`mig` and in Locatello et al. 2019.

    Args:
        codes: (N, D) latent codes, posterior means as a rule; numpy or torch.
        factors: (N, K) integer factor values.
        bins: number of bins a code.
        code_names, factor_names: D and K names for the printed table.

    Returns:
        :class:`ModularityResult`. A factor with a single value is no factor: it counts neither in the sum nor in K - 1
        (disentanglement_lib counts it, which raises every score).

    Raises:
        ValueError: empty arrays, shapes that do not belong together, codes that are not finite, factors that are not
            integers, no factor with two values. TypeError: not numbers.
    """
    codes = check_codes(codes)
    factors = check_factors(factors, len(codes))
    code_names = check_names("code_names", code_names, codes.shape[1])
    factor_names = check_names("factor_names", factor_names, factors.shape[1])
    counts = joint_counts(codes, factors, bins)
    information, varies = counts.mutual_information(), counts.factor_entropy() > 0
    if not varies.any():
        raise ValueError("factors: expected a factor with at least two values, got one value each")
    score, active_only, per_code = modularity_from_information(information[:, varies])
    return ModularityResult(
        score=score,
        active_only=active_only,
        per_code=per_code,
        mutual_information=information,
        bins=int(bins),
        num_samples=len(codes),
        code_names=code_names,
        factor_names=factor_names,
    )
