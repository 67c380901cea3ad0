"""Entropies of the aggregate posterior's marginals, for the analytic MIG of Chen et al."""

import math

import torch

from .. import ops

# What the plain-PyTorch fallback may hold at once: S x N x D numbers of a chunk (64 MB in float32).
_CHUNK_ELEMENTS = 1 << 24
_CHUNK_SAMPLES = 1024


def sample_aggregate(
    mean: torch.Tensor, logvar: torch.Tensor, samples: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """(S, D) draws from the mixture of N diagonal Gaussians, each component at most once while S <= N.

    Args:
        mean, logvar: (N, D) of the posteriors. samples: S. generator: on the CPU, seeds which components and the noise.
    """
    count = mean.shape[0]
    chosen = torch.randperm(count, generator=generator)[:samples]
    if samples > count:
        chosen = torch.randint(count, (samples,), generator=generator)
    noise = torch.randn(samples, mean.shape[1], generator=generator).to(mean)
    chosen = chosen.to(mean.device)
    return mean[chosen] + torch.exp(0.5 * logvar[chosen]) * noise


def aggregate_entropies(z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """H(z_j) = -mean_s log 1/N sum_n q(z_sj | x_n), in nats, from samples of the same mixture.

    All N posteriors count for each of the S samples, in chunks, so that memory stays O((S + N) D). Conditional
    entropies H(z_j | v_k) are those of the posteriors of the images with that factor value. No gradient.

    Args:
        z: (S, D) samples, S >= 1. mean, logvar: (N, D), N >= 1.

    Returns:
        (D,) float64.

    Reference: Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", equation 6 and appendix B.
    """
    samples, dims = z.shape
    if samples == 0 or mean.shape[0] == 0:
        raise ValueError(f"z and mean must have at least one row, got {samples} and {mean.shape[0]}")
    posteriors = max(1, _CHUNK_ELEMENTS // (_CHUNK_SAMPLES * dims))
    total = torch.zeros(dims, dtype=torch.float64, device=z.device)
    with torch.no_grad():
        for some in z.split(_CHUNK_SAMPLES):
            log_sum = None
            for means, logvars in zip(mean.split(posteriors), logvar.split(posteriors)):
                part = ops.aggregate_log_density(some, means, logvars, weights="naive").marginal
                # The op divides by the chunk's size.
                part = part + math.log(means.shape[0])
                log_sum = part if log_sum is None else torch.logaddexp(log_sum, part)
            total -= log_sum.sum(dim=0, dtype=torch.float64)
    return total / samples + math.log(mean.shape[0])
