"""The two layouts that kernels take as they are, and everything else brought into one of them."""

from dataclasses import dataclass

import torch

_HALF_TYPES = (torch.float16, torch.bfloat16)
_SUPPORTED = (torch.float32, torch.float64, *_HALF_TYPES)


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes and element strides of an ``(N, C, *S)`` tensor with S flattened; a sample takes C * S elements."""

    batch: int
    channels: int
    spatial: int
    channel_stride: int
    spatial_stride: int
    channels_last: bool


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_dtype(name: str, x: torch.Tensor, **parameters: torch.Tensor | None) -> None:
    """Raise TypeError unless ``x`` is a supported float and each parameter has x's dtype or float32."""
    if x.dtype not in _SUPPORTED:
        raise TypeError(f"{name}: x must be float32, float64, bfloat16 or float16, got {x.dtype}")
    for argument, tensor in parameters.items():
        if tensor is not None and tensor.dtype not in (x.dtype, torch.float32):
            raise TypeError(f"{name}: {argument} must be {x.dtype} (x's dtype) or float32, got {tensor.dtype}")


def native(x: torch.Tensor) -> tuple[torch.Tensor, Layout]:
    """``x`` itself where it is contiguous or channels-last, else a contiguous copy, and its layout."""
    batch, channels = x.shape[:2]
    spatial = x.shape[2:].numel()
    if x.is_contiguous():
        return x, Layout(batch, channels, spatial, spatial, 1, False)
    if x.dim() > 2 and x.movedim(1, -1).is_contiguous():
        return x, Layout(batch, channels, spatial, 1, channels, True)
    return x.contiguous(), Layout(batch, channels, spatial, spatial, 1, False)


def in_layout(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    """``tensor`` (shaped like x), copied only if its memory is not in ``layout`` already."""
    if not layout.channels_last:
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def is_per_pixel(parameter: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a scale or shift holds one value per element of ``x`` rather than one per (sample, channel)."""
    return x.dim() > 2 and parameter.dim() == x.dim()


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value`` (1 for 0)."""
    return 1 << max(value - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)
