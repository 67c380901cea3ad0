"""The ISA prior's log-density as the ISA-VAE paper states it and its public code computes it, in plain PyTorch."""

import math
from collections.abc import Sequence

import torch


def isa_log_prob(
    z: torch.Tensor, sizes: Sequence[int], p0: torch.Tensor, p: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """``log g(f(z)) - (n - 1) log f(z) - log S_f(1)`` (equations 6, 8 and 11) for z (N, n), one scale for all: (N,).

    Powers of the coordinates themselves and lgamma in z's dtype, so neither zeros nor extreme scales are handled.
    """
    n = z.shape[1]
    norms, log_surface = [], n * math.log(2)
    for k, part in enumerate(z.split(list(sizes), dim=1)):
        norms.append(part.abs().pow(p[k]).sum(dim=1).pow(1 / p[k]))
        size = sizes[k]
        log_surface = log_surface - (size - 1) * p[k].log()
        log_surface = log_surface + size * torch.lgamma(1 / p[k]) - torch.lgamma(size / p[k])
        log_surface = log_surface + torch.lgamma(size / p0)
    log_surface = log_surface - (len(sizes) - 1) * p0.log() - torch.lgamma(n / p0)
    f = torch.stack(norms, dim=1).pow(p0).sum(dim=1).pow(1 / p0)
    log_radial = p0.log() + (n - 1) * f.log() - f.pow(p0) / scale - torch.lgamma(n / p0) - n / p0 * scale.log()
    return log_radial - (n - 1) * f.log() - log_surface
