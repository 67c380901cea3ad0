"""Adaptive instance normalisation."""

import torch

from .modulate import align, compute_dtype


def adain(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, *, eps: float = 1e-5) -> torch.Tensor:
    """Plain PyTorch truth of :func:`strucfast.ops.adain`, with the same arguments."""
    dtype = compute_dtype(x)
    slices = x.to(dtype)
    within = tuple(range(2, x.dim()))
    if within:
        # Shifting by any member changes nothing but rounding: it removes a mean that is large beside the deviation.
        first = slices[(slice(None), slice(None), *(slice(0, 1) for _ in within))].detach()
        slices = slices - first
        centred = slices - slices.mean(dim=within, keepdim=True)
        variance = (centred * centred).mean(dim=within, keepdim=True)
    else:
        # A slice of one member is its own mean.
        centred = slices - slices
        variance = centred
    y = centred * torch.rsqrt(variance + eps)
    return (y * align(scale, x).to(dtype) + align(shift, x).to(dtype)).to(x.dtype)
