"""Log-density of the ISA prior: an Lp-nested distribution of depth 2."""

import math
from collections.abc import Sequence

import torch

from .modulate import compute_dtype


def lp_nested_log_prob(
    z: torch.Tensor, sizes: Sequence[int], p0: torch.Tensor, p: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Plain PyTorch truth of :func:`strucfast.ops.lp_nested_log_prob`, with the same arguments."""
    dtype = compute_dtype(z)
    log_normaliser = lp_nested_log_normaliser(sizes, p0, p, scale).to(dtype)
    root, exponents, scales = p0.to(dtype), p.to(dtype), scale.to(dtype).expand(len(sizes))
    energy = z.new_zeros(z.shape[0], dtype=dtype)
    for k, part in enumerate(z.to(dtype).split(list(sizes), dim=1)):
        log_norm, empty = log_lp_norm(part, exponents[k])
        # Masked before and after exp: a gradient through the branch not taken would be NaN.
        power = torch.exp(root * torch.where(empty, 0.0, log_norm)) / scales[k]
        energy = energy + torch.where(empty, 0.0, power)
    return log_normaliser - energy


def log_lp_norm(z: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``log (sum_j |z_j|^p)^(1/p)`` over the last dim (0 where all are zero), and where all are zero."""
    size = z.abs()
    # The norm does not depend on the unit of length, so the largest entry as the unit needs no gradient.
    unit = size.detach().amax(dim=-1, keepdim=True)
    empty = unit.squeeze(-1) == 0
    unit = torch.where(unit == 0, 1.0, unit)
    zero = size == 0
    terms = torch.where(zero, 0.0, torch.where(zero, 1.0, size / unit).pow(p))
    total = torch.where(empty, 1.0, terms.sum(dim=-1))
    return torch.where(empty, 0.0, unit.squeeze(-1).log() + total.log() / p), empty


def lp_nested_log_normaliser(
    sizes: Sequence[int], p0: torch.Tensor, p: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """The part of the log-density that does not depend on z, a float64 scalar (ISA-VAE paper, equations 8 and 11).

    In float64 because float32 loses five digits of a difference of log-gammas already at 64 dims.
    """
    n = torch.tensor(list(sizes), dtype=torch.float64, device=p.device)
    root, exponents = p0.double(), p.double()
    log_scale = scale.double().expand(len(sizes)).log()
    subspace = (
        torch.lgamma(1 + n / exponents)
        - torch.lgamma(1 + n / root)
        - n * (math.log(2) + torch.lgamma(1 + 1 / exponents))
        - n / root * log_scale
    )
    return subspace.sum()
