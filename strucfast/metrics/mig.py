"""Mutual information gap."""

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
class MIGResult(Result):
    """What :func:`mig` returns.

    Attributes:
        score: mean of ``per_factor`` over the factors that vary, in [0, 1].
        per_factor: (K,) normalised gaps; NaN for a factor with a single value.
        mutual_information: (D, K) in nats, binned codes against factors.
        factor_entropy: (K,) sample entropies in nats.
        code_entropy: (D,) entropies of the binned codes in nats.
        bins, num_samples: of the estimate.
        code_names, factor_names: D and K names, or None.
    """

    score: float
    per_factor: np.ndarray
    mutual_information: np.ndarray
    factor_entropy: np.ndarray
    code_entropy: np.ndarray
    bins: int
    num_samples: int
    code_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None

    name = "mig"

    def __str__(self) -> str:
        codes = default_names(self.code_names, "z", len(self.mutual_information))
        factors = default_names(self.factor_names, "v", len(self.per_factor))
        rows = list(zip(codes, self.mutual_information))
        rows += [("entropy", self.factor_entropy), ("gap", self.per_factor)]
        title = f"MIG {self.score:.4f}  ({self.num_samples} samples, {self.bins} bins, mutual information in nats)"
        return table(title, factors, rows, rules=(len(codes),))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Mutual information over factor entropy as a D x K matrix, on ``ax`` or a new figure."""
        entropy = np.where(self.factor_entropy > 0, self.factor_entropy, 1.0)
        codes = default_names(self.code_names, "z", len(self.mutual_information))
        factors = default_names(self.factor_names, "v", len(self.per_factor))
        return matrix_axes(self.mutual_information / entropy, codes, factors, f"MIG {self.score:.3f}", ax)


def mig(codes: Any, factors: Any, bins: int = 20, *, code_names: Any = None, factor_names: Any = None) -> MIGResult:
    """Mutual information gap (Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", eq. 6).

    MIG = mean over factors k of (I(z_j1; v_k) - I(z_j2; v_k)) / H(v_k), where j1 and j2 are the two codes that tell
    most about v_k. Codes are cut into equal-width bins between their minimum and maximum and factors taken as they are,
    with plug-in estimates from exact counts (the estimator of Locatello et al. 2019; Chen et al. integrate over
    posteriors).

    Args:
        codes: (N, D) latent codes, posterior means as a rule; numpy or torch. Codes on a GPU are counted there.
        factors: (N, K) integer factor values. Only which values agree matters, not their order.
        bins: number of bins a code.
        code_names, factor_names: D and K names for the printed table.

    Returns:
        :class:`MIGResult`. With one code the second information is 0. A factor with a single value has no entropy to
        normalise by and is left out of the mean.

    Raises:
        ValueError: empty arrays, shapes that do not belong together, codes that are not finite, factors that are not
            integers, no factor with two values. TypeError: not numbers.
    """
    codes = check_codes(codes, keep_device=True)
    factors = check_factors(factors, len(codes), like=codes)
    code_names = check_names("code_names", code_names, codes.shape[1])
    factor_names = check_names("factor_names", factor_names, factors.shape[1])
    counts = joint_counts(codes, factors, bins)
    information, entropy = counts.mutual_information(), counts.factor_entropy()
    varies = entropy > 0
    if not varies.any():
        raise ValueError("factors: expected a factor with at least two values, got one value each: MIG is not defined")
    ordered = np.sort(information, axis=0)
    gap = ordered[-1] - (ordered[-2] if len(ordered) > 1 else 0.0)
    per_factor = np.full(len(entropy), np.nan)
    per_factor[varies] = gap[varies] / entropy[varies]
    return MIGResult(
        score=float(per_factor[varies].mean()),
        per_factor=per_factor,
        mutual_information=information,
        factor_entropy=entropy,
        code_entropy=counts.code_entropy(),
        bins=int(bins),
        num_samples=len(codes),
        code_names=code_names,
        factor_names=factor_names,
    )
