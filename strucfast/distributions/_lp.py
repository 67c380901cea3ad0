"""Lp norms and the constants of Lp-nested densities, with batched exponents."""

from collections.abc import Sequence

import torch

from ._random import LOG_2, filled


def lp_norm(values: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """``(sum_k v_k^p)^(1/p)`` over the last dim of values >= 0; p broadcasts with the shape of the result.

    The largest value is the unit of length, so that no power leaves the range of float32. The gradient at a zero is 0,
    also where the one-sided derivative is infinite (p < 1).
    """
    shape = torch.broadcast_shapes(values.shape[:-1], p.shape)
    return _LpNorm.apply(values.expand(shape + values.shape[-1:]), p.expand(shape))


class _LpNorm(torch.autograd.Function):
    """The chain through the unit of length would multiply gradients by it, out of float32's range, and back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        unit = values.amax(dim=-1)
        unit = torch.where(unit == 0, 1.0, unit)
        return unit * (values / unit[..., None]).pow(p[..., None]).sum(dim=-1).pow(1 / p)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        by_value, by_exponent = _norm_derivatives(*ctx.saved_tensors)
        return upstream[..., None] * by_value, upstream * by_exponent

    @staticmethod
    def jvp(ctx, values: torch.Tensor | None, p: torch.Tensor | None) -> torch.Tensor:
        by_value, by_exponent = _norm_derivatives(*ctx.saved_tensors)
        tangent = torch.zeros_like(by_exponent)
        if values is not None:
            tangent = tangent + (by_value * values).sum(dim=-1)
        return tangent if p is None else tangent + by_exponent * p


def _norm_derivatives(
    values: torch.Tensor, p: torch.Tensor, norm: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``dv/dv_k = (v_k/v)^(p-1)`` and ``dv/dp = -(v/p^2) H``, H the entropy of the weights ``(v_k/v)^p``."""
    share = values / torch.where(norm == 0, 1.0, norm)[..., None]
    weight = masked_power(share, p[..., None])
    entropy = -(weight * torch.where(share == 0, 1.0, share).log()).sum(dim=-1) * p
    return masked_power(share, p[..., None] - 1), -norm * entropy / p**2


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
    root, exponents, scale = p0.double()[..., None], p.double(), scale.double()
    n = filled(sizes, exponents)
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
    root, exponents = p0.double()[..., None], p.double()
    n = filled(sizes, exponents)
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
