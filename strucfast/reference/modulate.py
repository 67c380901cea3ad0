"""Channelwise affine modulation ``y = scale * x + shift``."""

import torch

_HALF_TYPES = (torch.float16, torch.bfloat16)


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Half types are computed in float32, everything else in its own type."""
    return torch.float32 if x.dtype in _HALF_TYPES else x.dtype


def align(parameter: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """View a (N,C) parameter as (N,C,1,...,1) beside ``x``; an x-shaped one stays as it is."""
    if parameter.dim() == x.dim():
        return parameter
    return parameter.reshape(parameter.shape + (1,) * (x.dim() - parameter.dim()))


def modulate(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Plain PyTorch truth of :func:`strucfast.ops.modulate`, with the same arguments."""
    dtype = compute_dtype(x)
    y = align(scale, x).to(dtype) * x.to(dtype) + align(shift, x).to(dtype)
    return y.to(x.dtype)
