"""Lp norms and the constants of Lp-nested densities, with batched exponents."""

from collections.abc import Sequence

import torch

from ._random import LOG_2


def lp_norm(values: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """``(sum_k v_k^p)^(1/p)`` over the last dim of values >= 0; p has the shape of the result, or broadcasts to it.

    The largest value is the unit of length, so that no power leaves the range of float32. The gradient at a zero is 0,
    also where the one-sided derivative is infinite (p < 1).
    """
    # The norm does not depend on the unit, so the unit needs no gradient.
    unit = values.detach().amax(dim=-1)
    unit = torch.where(unit == 0, 1.0, unit)
    powers = masked_power(values / unit[..., None], p[..., None])
    total = powers.sum(dim=-1)
    empty = total == 0
    return unit * torch.where(empty, 0.0, torch.where(empty, 1.0, total).pow(1 / p))


def masked_power(values: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """``v^p`` of values >= 0 whose gradients at v = 0 are 0 instead of infinite or NaN."""
    zero = values == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, values).pow(p))


def isa_constants(
    sizes: Sequence[int], p0: torch.Tensor, p: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Each subspace's share of the log-normaliser, (...,K) in float64 (ISA-VAE paper, equations 8 and 11).

    float32 loses five digits of a difference of log-gammas already at 64 dims.
    """
    n = torch.tensor(list(sizes), dtype=torch.float64, device=p.device)
    root, exponents, scale = p0.double()[..., None], p.double(), scale.double()
    return (
        torch.lgamma(1 + n / exponents)
        - torch.lgamma(1 + n / root)
        - n * (LOG_2 + torch.lgamma(1 + 1 / exponents))
        - n / root * scale.log()
    )


def isa_second_moment(
    sizes: Sequence[int], p0: torch.Tensor, p: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """E z_j^2 of a coordinate of each subspace, (...,K) in float64."""
    n = torch.tensor(list(sizes), dtype=torch.float64, device=p.device)
    root, exponents = p0.double()[..., None], p.double()
    radius = torch.lgamma((n + 2) / root) - torch.lgamma(n / root)
    return (scale.double().log() * 2 / root + radius + log_ratio_moment(1, n, exponents, 2)).exp()


def log_ratio_moment(
    part: torch.Tensor | float, whole: torch.Tensor | float, p: torch.Tensor, order: float
) -> torch.Tensor:
    """log E u^order, where u^p is Beta(part/p, (whole - part)/p): a child's value over its parent's."""
    part, whole = torch.as_tensor(part, device=p.device), torch.as_tensor(whole, device=p.device)
    return (
        torch.lgamma((part + order) / p)
        - torch.lgamma(part / p)
        + torch.lgamma(whole / p)
        - torch.lgamma((whole + order) / p)
    )
