"""GroupNorm, activation and affine modulation, one after the other."""

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
    # unflatten keeps the strides, so a channels-last input stays channels-last through every elementwise step.
    groups = x.to(dtype).unflatten(1, (num_groups, x.shape[1] // num_groups))
    within = tuple(range(2, groups.dim()))
    # Shifting by any member changes nothing but rounding: it removes a mean that is large beside the deviation.
    first = groups[(slice(None), slice(None), *(slice(0, 1) for _ in within))].detach()
    groups = groups - first
    # Two passes: E[x^2] - m^2 would lose every digit.
    centred = groups - groups.mean(dim=within, keepdim=True)
    rstd = torch.rsqrt((centred * centred).mean(dim=within, keepdim=True) + eps)
    y = (centred * rstd).flatten(1, 2)
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
