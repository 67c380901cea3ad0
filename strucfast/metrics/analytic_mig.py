"""Mutual information gap by integration over the posteriors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._inputs import check_codes, check_factors, check_finite, check_names
from ._interventions import check_counts
from ._result import Result, default_names, matrix_axes, table

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class AnalyticMIGResult(Result):
    """What :func:`analytic_mig` returns.

    Attributes:
        score: mean of ``per_factor`` over the factors that vary.
        per_factor: (K,) normalised gaps; NaN for a factor with a single value.
        mutual_information: (D, K) in nats, H(z_j) - H(z_j | v_k), at least 0.
        code_entropy: (D,) differential entropies H(z_j) in nats; may be negative.
        conditional_entropy: (D, K) H(z_j | v_k) in nats.
        factor_entropy: (K,) sample entropies in nats.
        num_samples, num_posteriors: of the estimate.
        code_names, factor_names: D and K names, or None.
    """

    score: float
    per_factor: np.ndarray
    mutual_information: np.ndarray
    code_entropy: np.ndarray
    conditional_entropy: np.ndarray
    factor_entropy: np.ndarray
    num_samples: int
    num_posteriors: int
    code_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None

    name = "analytic_mig"

    def __str__(self) -> str:
        codes, factors = self._names()
        rows = [(n, [*row, own]) for n, row, own in zip(codes, self.mutual_information, self.code_entropy)]
        rows += [("entropy", [*self.factor_entropy, np.nan]), ("gap", [*self.per_factor, np.nan])]
        title = (
            f"Analytic MIG {self.score:.4f}  ({self.num_posteriors} posteriors, {self.num_samples} samples,"
            " mutual information in nats)"
        )
        return table(title, [*factors, "entropy"], rows, rules=(len(codes),))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Mutual information over factor entropy as a D x K matrix, on ``ax`` or a new figure."""
        entropy = np.where(self.factor_entropy > 0, self.factor_entropy, 1.0)
        return matrix_axes(self.mutual_information / entropy, *self._names(), f"Analytic MIG {self.score:.3f}", ax)

    def _names(self) -> tuple[list[str], list[str]]:
        codes, factors = self.mutual_information.shape
        return default_names(self.code_names, "z", codes), default_names(self.factor_names, "v", factors)


def analytic_mig(
    mean: Any,
    logvar: Any,
    factors: Any,
    *,
    num_samples: int = 10000,
    normalise: str = "entropy",
    seed: int = 0,
    code_names: Any = None,
    factor_names: Any = None,
) -> AnalyticMIGResult:
    """Mutual information gap by integration over the posteriors (Chen et al. 2018, "Isolating Sources of
    Disentanglement in VAEs", equations 5 and 6, appendix B).

    ``I(z_j; v_k) = H(z_j) - H(z_j | v_k)`` under q(z) = 1/N sum_n q(z|x_n): entropies by Monte Carlo over samples of
    the mixture of all N posteriors, and of the posteriors of each factor value, whose density is exact. The samples
    are noisy codes, not posterior means: a code of large posterior variance tells less here than in
    :func:`strucfast.metrics.mig`. No bins.

    Args:
        mean, logvar: (N, D) of diagonal Gaussian posteriors, log of the variance; numpy, or torch on any device, where
            the sums then run.
        factors: (N, K) integer factor values. The grid of combinations may have holes: values weigh by their rows.
        num_samples: S, samples for each H(z_j) and H(z_j | v_k); in the latter every value has a share of them as large
            as its share of rows, at least one. Costs about S N D (1 + sum_k 1/values_k) Gaussian densities.
        normalise: "entropy" divides by the sample entropy of the factor; "log" by the log of its number of values, as
            Chen et al. The same on a full grid.
        seed: of the samples.
        code_names, factor_names: D and K names for the printed table.

    Returns:
        :class:`AnalyticMIGResult`. A factor with a single value is left out of the mean; with one code the second
        information is 0. A code whose posterior is the prior everywhere has information 0 up to sampling noise.

    Raises:
        ValueError: empty arrays, shapes that do not belong together, values that are not finite, factors that are not
            integers, no factor with two values. TypeError: not numbers.
    """
    import torch

    from ._aggregate_entropy import aggregate_entropies, sample_aggregate

    check_counts(num_samples=num_samples)
    if normalise not in ("entropy", "log"):
        raise ValueError(f"normalise: expected 'entropy' or 'log', got {normalise!r}")
    mean, logvar = _posteriors(mean, logvar)
    factors = check_factors(factors, len(mean))
    rows, codes = mean.shape
    code_names = check_names("code_names", code_names, codes)
    factor_names = check_names("factor_names", factor_names, factors.shape[1])
    if (factors == factors[0]).all():
        raise ValueError("factors: expected a factor with at least two values, got one value each: MIG is not defined")

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():

        def entropies(some_mean: torch.Tensor, some_logvar: torch.Tensor, count: int) -> np.ndarray:
            z = sample_aggregate(some_mean, some_logvar, count, generator)
            return aggregate_entropies(z, some_mean, some_logvar).cpu().numpy()

        whole = entropies(mean, logvar, num_samples)
        conditional, entropy, values = [], [], []
        for column in factors.T:
            order = np.argsort(column, kind="stable")
            counts = np.unique(column, return_counts=True)[1]
            picked = torch.from_numpy(order).to(mean.device)
            total = np.zeros(codes)
            for part, share in zip(picked.split(counts.tolist()), counts / rows):
                total += share * entropies(mean[part], logvar[part], max(1, round(num_samples * share)))
            conditional.append(total)
            entropy.append((counts / rows * np.log(rows / counts)).sum())
            values.append(len(counts))
    conditional, entropy, values = np.stack(conditional, axis=1), np.array(entropy), np.array(values)
    information = np.maximum(whole[:, None] - conditional, 0.0)
    information[:, values == 1] = 0.0
    ordered = np.sort(information, axis=0)
    gap = ordered[-1] - (ordered[-2] if codes > 1 else 0.0)
    divisor = entropy if normalise == "entropy" else np.log(values)
    per_factor = np.where(values > 1, gap / np.where(values > 1, divisor, 1.0), np.nan)
    return AnalyticMIGResult(
        score=float(np.nanmean(per_factor)),
        per_factor=per_factor,
        mutual_information=information,
        code_entropy=whole,
        conditional_entropy=conditional,
        factor_entropy=entropy,
        num_samples=int(num_samples),
        num_posteriors=rows,
        code_names=code_names,
        factor_names=factor_names,
    )


def _posteriors(mean: Any, logvar: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 or float64 tensors (N, D) on the device they came on."""
    import torch

    found = []
    for name, values in (("mean", mean), ("logvar", logvar)):
        if torch.is_tensor(values):
            if values.dim() != 2 or 0 in values.shape or not values.is_floating_point():
                raise ValueError(f"{name}: expected floats (N, D), got {values.dtype} {tuple(values.shape)}")
            values = values.detach()
            values = values if values.dtype in (torch.float32, torch.float64) else values.float()
            if not torch.isfinite(values).all():
                raise ValueError(f"{name}: expected finite values, got NaN or infinity")
        else:
            array = check_codes(values, name)
            check_finite(array, name)
            values = torch.from_numpy(array)
        found.append(values)
    mean, logvar = found
    if logvar.shape != mean.shape:
        raise ValueError(f"logvar: expected mean's shape {tuple(mean.shape)}, got {tuple(logvar.shape)}")
    return mean, logvar.to(mean)
