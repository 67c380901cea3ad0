"""Channelwise or per-pixel affine ``y = scale * x + shift``: forward, and a backward that reads each input once."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ._launch import check_device, launch, processors
from ._layout import Layout, ceil_div, check_dtype, compute_dtype, in_layout, is_per_pixel, native, next_power_of_two
from ._math import load
from ._reduce import column_sums
from ._tuning import tuned


@dataclass(frozen=True, slots=True)
class ModulateConfig:
    """Tile of one program (channels x positions), its warps, and into how many parts the backward cuts S."""

    block_c: int
    block_s: int
    num_warps: int = 4
    splits: int = 1


@triton.jit
def _tile(index, channel_tiles, BLOCK_C: tl.constexpr):
    """(sample or sample part, channels) of the ``index``-th tile; channels run fastest."""
    outer = index // channel_tiles
    channel = (index % channel_tiles).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    return outer.to(tl.int64), channel


@triton.jit
def _modulate_forward_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    channels,
    spatial,
    channel_stride,
    spatial_stride,
    channel_tiles,
    spatial_tiles,
    SCALE_PER_PIXEL: tl.constexpr,
    SHIFT_PER_PIXEL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    pid = tl.program_id(0)
    sample, channel = _tile(pid // spatial_tiles, channel_tiles, BLOCK_C)
    position = (pid % spatial_tiles).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    in_channels = channel < channels
    mask = in_channels[:, None] & (position < spatial)[None, :]
    base = sample * channels * spatial
    offset = base + channel[:, None] * channel_stride + position[None, :] * spatial_stride
    row = sample * channels + channel
    x = load(x_ptr + offset, mask)
    if SCALE_PER_PIXEL:
        y = x * load(scale_ptr + offset, mask)
    else:
        y = x * load(scale_ptr + row, in_channels)[:, None]
    if SHIFT_PER_PIXEL:
        y += load(shift_ptr + offset, mask)
    else:
        y += load(shift_ptr + row, in_channels)[:, None]
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _modulate_backward_kernel(
    grad_ptr,
    x_ptr,
    scale_ptr,
    dx_ptr,
    dscale_ptr,
    dshift_ptr,
    channels,
    spatial,
    channel_stride,
    spatial_stride,
    channel_tiles,
    rows,
    chunk,
    splits,
    SCALE_PER_PIXEL: tl.constexpr,
    SHIFT_PER_PIXEL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    # An output that is not asked for has the pointer None.
    pid = tl.program_id(0)
    split = pid % splits
    sample, channel = _tile(pid // splits, channel_tiles, BLOCK_C)
    in_channels = channel < channels
    base = sample * channels * spatial
    row = sample * channels + channel
    compute: tl.constexpr = tl.float64 if grad_ptr.dtype.element_ty == tl.float64 else tl.float32
    scale_sum = tl.zeros([BLOCK_C, BLOCK_S], compute)
    shift_sum = tl.zeros([BLOCK_C, BLOCK_S], compute)
    if dx_ptr is not None and not SCALE_PER_PIXEL:
        scale = load(scale_ptr + row, in_channels)[:, None]
    begin = split.to(tl.int64) * chunk
    end = tl.minimum(begin + chunk, spatial)
    for start in range(begin, end, BLOCK_S):
        position = start + tl.arange(0, BLOCK_S).to(tl.int64)
        mask = in_channels[:, None] & (position < end)[None, :]
        offset = base + channel[:, None] * channel_stride + position[None, :] * spatial_stride
        g = load(grad_ptr + offset, mask)
        if dscale_ptr is not None:
            product = g * load(x_ptr + offset, mask)
            if SCALE_PER_PIXEL:
                tl.store(dscale_ptr + offset, product.to(dscale_ptr.dtype.element_ty), mask=mask)
            else:
                scale_sum += product
        if dx_ptr is not None:
            if SCALE_PER_PIXEL:
                dx = g * load(scale_ptr + offset, mask)
            else:
                dx = g * scale
            tl.store(dx_ptr + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if dshift_ptr is not None:
            if SHIFT_PER_PIXEL:
                tl.store(dshift_ptr + offset, g.to(dshift_ptr.dtype.element_ty), mask=mask)
            else:
                shift_sum += g
    target = split.to(tl.int64) * rows + row
    if dscale_ptr is not None and not SCALE_PER_PIXEL:
        total = tl.sum(scale_sum, axis=1)
        tl.store(dscale_ptr + target, total.to(dscale_ptr.dtype.element_ty), mask=in_channels)
    if dshift_ptr is not None and not SHIFT_PER_PIXEL:
        total = tl.sum(shift_sum, axis=1)
        tl.store(dshift_ptr + target, total.to(dshift_ptr.dtype.element_ty), mask=in_channels)


def _problem(layout: Layout, all_per_pixel: bool) -> Layout:
    """The same memory with fewer, longer dimensions, where the operation allows it."""
    if all_per_pixel or layout.spatial == 1:
        # One value of every operand per element: a flat array.
        total = layout.batch * layout.channels * layout.spatial
        return Layout(1, 1, total, total, 1, False)
    if not layout.channels_last:
        # Samples and channels are one dimension of rows, so that a tile may reach over samples.
        return Layout(1, layout.batch * layout.channels, layout.spatial, layout.spatial, 1, False)
    return layout


def _tile_shape(layout: Layout, elements: int, row_limit: int) -> tuple[int, int]:
    """(block_c, block_s) of about ``elements`` elements with the contiguous dimension first filled."""
    if layout.channels_last:
        block_c = min(next_power_of_two(layout.channels), row_limit)
        return block_c, min(next_power_of_two(layout.spatial), elements // block_c)
    block_s = min(next_power_of_two(layout.spatial), elements)
    return min(next_power_of_two(layout.channels), elements // block_s), block_s


def _warps(elements: int) -> int:
    """Sixteen elements a thread or fewer warps than four."""
    return min(max(elements // 512, 1), 4)


def forward_config(layout: Layout, itemsize: int, device: torch.device) -> ModulateConfig:
    """Tiles of 8 KiB of x: four 16-byte accesses per thread and operand, some 50 KiB in flight per processor."""
    block_c, block_s = _tile_shape(layout, 8192 // itemsize, 256)
    key = (layout.channels, layout.spatial, layout.channels_last, itemsize)
    return tuned("modulate_forward", key, ModulateConfig(block_c, block_s, _warps(block_c * block_s)), device)


def backward_config(layout: Layout, itemsize: int, reduces: bool, device: torch.device) -> ModulateConfig:
    """Tiles of 8 KiB of x; S is cut into parts until some eight programs per processor run."""
    # 128-byte rows are whole cache lines; a wider channels-last tile only lengthens each program's share.
    block_c, block_s = _tile_shape(layout, 8192 // itemsize, max(128 // itemsize, 1))
    tiles = ceil_div(layout.spatial, block_s)
    programs = layout.batch * ceil_div(layout.channels, block_c)
    # Without a reduction the parts are independent: one tile each.
    splits = tiles if not reduces else min(ceil_div(8 * processors(device), programs), tiles, 64)
    key = (layout.batch, layout.channels, layout.spatial, layout.channels_last, itemsize, reduces)
    return tuned("modulate_backward", key, ModulateConfig(block_c, block_s, _warps(block_c * block_s), splits), device)


def modulate_forward(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, *, config: ModulateConfig | None = None
) -> torch.Tensor:
    """``scale * x + shift`` in x's dtype and layout.

    Args:
        x: ``(N, C, *S)``, float32, float64, bfloat16 or float16.
        scale, shift: ``(N, C)`` or x's shape, in x's dtype or float32.
        config: launch configuration; a heuristic one by default.
    """
    device = check_device("modulate", x, scale, shift)
    check_dtype("modulate", x, scale=scale, shift=shift)
    x, layout = native(x)
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    flat = layout.spatial == 1
    scale_per_pixel = flat or is_per_pixel(scale, x)
    shift_per_pixel = flat or is_per_pixel(shift, x)
    scale = in_layout(scale, layout) if is_per_pixel(scale, x) else scale.contiguous()
    shift = in_layout(shift, layout) if is_per_pixel(shift, x) else shift.contiguous()
    problem = _problem(layout, scale_per_pixel and shift_per_pixel)
    config = config or forward_config(problem, x.element_size(), device)
    channel_tiles = ceil_div(problem.channels, config.block_c)
    spatial_tiles = ceil_div(problem.spatial, config.block_s)
    launch(
        _modulate_forward_kernel,
        problem.batch * channel_tiles * spatial_tiles,
        device,
        x,
        scale,
        shift,
        y,
        problem.channels,
        problem.spatial,
        problem.channel_stride,
        problem.spatial_stride,
        channel_tiles,
        spatial_tiles,
        SCALE_PER_PIXEL=scale_per_pixel,
        SHIFT_PER_PIXEL=shift_per_pixel,
        BLOCK_C=config.block_c,
        BLOCK_S=config.block_s,
        num_warps=config.num_warps,
    )
    return y


def modulate_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift_per_pixel: bool,
    mask: int,
    *,
    config: ModulateConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients (dx, dscale, dshift) of :func:`modulate_forward`.

    Args:
        grad: gradient of y, x's shape and dtype.
        x, scale: the forward's inputs; dshift has scale's dtype.
        shift_per_pixel: whether shift had x's shape.
        mask: bit i asks for output i; the others are empty tensors of size (0,).
        config: launch configuration; a heuristic one by default.
    """
    device = check_device("modulate_backward", grad, x, scale)
    check_dtype("modulate_backward", x, scale=scale)
    scale_is_map = is_per_pixel(scale, x)
    x, layout = native(x)
    grad = in_layout(grad, layout)
    scale = in_layout(scale, layout) if scale_is_map else scale.contiguous()
    none = x.new_empty(0)
    per_channel = (layout.batch, layout.channels)
    dx = torch.empty_like(x) if mask & 1 else none
    dscale = torch.empty_like(scale) if mask & 2 else scale.new_empty(0)
    if not mask & 4:
        dshift = scale.new_empty(0)
    elif shift_per_pixel and x.dim() > 2:
        dshift = torch.empty_like(x, dtype=scale.dtype)
    else:
        dshift = scale.new_empty(per_channel)
    if x.numel() == 0:
        return dx, dscale.zero_(), dshift.zero_()
    flat = layout.spatial == 1
    scale_map, shift_map = flat or scale_is_map, flat or (shift_per_pixel and x.dim() > 2)
    reduces_scale, reduces_shift = bool(mask & 2) and not scale_map, bool(mask & 4) and not shift_map
    problem = _problem(layout, scale_map and shift_map)
    reduces = reduces_scale or reduces_shift
    config = config or backward_config(problem, x.element_size(), reduces, device)
    channel_tiles = ceil_div(problem.channels, config.block_c)
    # A whole number of tiles, so that only the last part has a ragged end.
    chunk = ceil_div(ceil_div(problem.spatial, config.block_s), config.splits) * config.block_s
    splits = ceil_div(problem.spatial, chunk)
    rows = problem.batch * problem.channels
    dscale_target, dshift_target = dscale, dshift
    if splits > 1:
        compute = compute_dtype(x.dtype)
        if reduces_scale:
            dscale_target = x.new_empty((splits, rows), dtype=compute)
        if reduces_shift:
            dshift_target = x.new_empty((splits, rows), dtype=compute)
    launch(
        _modulate_backward_kernel,
        problem.batch * channel_tiles * splits,
        device,
        grad,
        x if mask & 2 else None,
        scale if mask & 1 else None,
        dx if mask & 1 else None,
        dscale_target if mask & 2 else None,
        dshift_target if mask & 4 else None,
        problem.channels,
        problem.spatial,
        problem.channel_stride,
        problem.spatial_stride,
        channel_tiles,
        rows,
        chunk,
        splits,
        SCALE_PER_PIXEL=scale_map,
        SHIFT_PER_PIXEL=shift_map,
        BLOCK_C=config.block_c,
        BLOCK_S=config.block_s,
        num_warps=config.num_warps,
    )
    if splits > 1:
        column_sums(
            dscale_target if reduces_scale else None,
            dscale,
            dshift_target if reduces_shift else None,
            dshift,
            splits,
            rows,
        )
    return dx, dscale, dshift
