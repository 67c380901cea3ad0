"""GroupNorm, activation and affine modulation, one after the other."""

import math

import torch

from ._activations import activate
from .modulate import align, compute_dtype


def group_norm_modulate(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    *,
    activation: str = "mish",
    eps: float = 1e-5,
) -> torch.Tensor:
    """Plain PyTorch truth of :func:`strucfast.ops.group_norm_modulate`, with the same arguments."""
    dtype = compute_dtype(x)
    per_channel = (1, x.shape[1]) + (1,) * (x.dim() - 2)
    groups = x.to(dtype).reshape(x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups)
    # Two passes: E[x^2] - m^2 loses every digit once the mean is large beside the deviation.
    centred = groups - groups.mean(dim=2, keepdim=True)
    rstd = torch.rsqrt((centred * centred).mean(dim=2, keepdim=True) + eps)
    y = (centred * rstd).reshape(x.shape)
    if weight is not None:
        y = y * weight.to(dtype).reshape(per_channel)
    if bias is not None:
        y = y + bias.to(dtype).reshape(per_channel)
    y = activate(y, activation)
    if scale is not None:
        y = y * align(scale, x).to(dtype)
    if shift is not None:
        y = y + align(shift, x).to(dtype)
    return y.to(x.dtype)
