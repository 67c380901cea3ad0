"""Adaptive instance normalisation: group_norm_modulate's kernels on groups of one channel, with tiles of its own."""

import torch

from ._launch import check_device, processors
from ._layout import Layout, ceil_div, check_dtype, compute_dtype, in_layout, is_per_pixel, native, next_power_of_two
from ._tuning import tuned
from .group_norm_modulate import GroupNormConfig, group_norm_modulate_backward, group_norm_modulate_forward

_IDENTITY = 0


def adain_config(operation: str, layout: Layout, itemsize: int, limit: int, device: torch.device) -> GroupNormConfig:
    """Resident tiles of whole slices up to ``limit`` elements, looping tiles beyond, split where programs are few.

    Contiguous slices are rows of memory, and short ones share a tile of 8 KiB. A channels-last tile is as many channels
    wide as fill a cache line, or, where slices of that width do not fit, a 32-byte sector.
    """
    # float64 takes twice the registers for its values, as group_norm_config says.
    wide = 4 if itemsize == 8 else 1
    limit //= wide
    channels, positions = next_power_of_two(layout.channels), next_power_of_two(layout.spatial)
    if layout.channels_last:
        groups = min(channels, 128 // itemsize)
        if groups * positions > limit:
            groups = min(channels, 32 // itemsize)
        while 2 * groups <= min(channels, 256) and 2 * groups * positions <= 2048 // wide:
            groups *= 2
    else:
        groups = min(channels, max(2048 // wide // positions, 1))
    resident = groups * positions <= limit
    block_s = positions if resident else min(positions, 4096 // wide // groups)
    splits = 1
    programs = layout.batch * ceil_div(layout.channels, groups)
    if not resident and programs < processors(device):
        splits = min(ceil_div(2 * processors(device), programs), ceil_div(layout.spatial, block_s), 64)
    # Sixteen elements a thread, in a looping tile (which also carries its accumulators) eight.
    num_warps = min(max(groups * block_s // (512 if resident else 256) * min(wide, 2), 1), 16)
    # Prefetching copies 16 bytes at a time; rows of another length would be copied element by element.
    row = layout.channels if layout.channels_last else layout.spatial
    stages = 1 if row * itemsize % 16 else 3 if itemsize > 2 else 4
    config = GroupNormConfig(groups, groups, block_s, num_warps, resident, splits, stages)
    key = (layout.batch, layout.channels, layout.spatial, layout.channels_last, itemsize)
    return tuned(operation, key, config, device)


def _as_rows(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(1, N C, S) or (1, N C) instead of (N, C, *S) or (N, C), so that a tile may reach over samples."""
    rows = layout.batch * layout.channels
    return tensor.reshape(1, rows) if tensor.dim() == 2 else tensor.reshape(1, rows, layout.spatial)


def _rows_of(layout: Layout) -> Layout:
    """The layout that the kernels see."""
    if layout.spatial == 1:
        # Without positions channels are adjacent.
        return Layout(layout.batch, layout.channels, 1, 1, layout.channels, True)
    if layout.channels_last:
        return layout
    return Layout(1, layout.batch * layout.channels, layout.spatial, layout.spatial, 1, False)


def adain_forward(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float, *, config: GroupNormConfig | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, statistics): y in x's dtype and layout; statistics ``(2, N, C)`` in the compute type.

    They are the mean relative to the slice's first pixel, which keeps its digits beside a large offset, and rstd.

    Args:
        x: ``(N, C, *S)``, float32, float64, bfloat16 or float16.
        scale, shift: ``(N, C)`` or x's shape, in x's dtype or float32.
        config: launch configuration; a heuristic one by default.
    """
    device = check_device("adain", x, scale, shift)
    check_dtype("adain", x, scale=scale, shift=shift)
    x, layout = native(x)
    statistics = x.new_empty((2, layout.batch, layout.channels), dtype=compute_dtype(x.dtype))
    if x.numel() == 0:
        return torch.empty_like(x), statistics.zero_()
    problem = _rows_of(layout)
    config = config or adain_config("adain_forward", problem, x.element_size(), 16384, device)
    if problem.channels_last:
        y, _, _ = group_norm_modulate_forward(
            x, layout.channels, None, None, scale, shift, _IDENTITY, eps, config=config, statistics=statistics
        )
        return y, statistics
    scale, shift = (_as_rows(in_layout(p, layout) if is_per_pixel(p, x) else p, layout) for p in (scale, shift))
    y, _, _ = group_norm_modulate_forward(
        _as_rows(x, layout), problem.channels, None, None, scale, shift, _IDENTITY, eps,
        config=config, statistics=statistics.view(2, 1, problem.channels),
    )  # fmt: skip
    return y.view(x.shape), statistics


def adain_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    statistics: torch.Tensor,
    scale: torch.Tensor,
    shift_per_pixel: bool,
    mask: int,
    *,
    config: GroupNormConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients (dx, dscale, dshift) of :func:`adain_forward`.

    Args:
        grad: gradient of y, x's shape and dtype.
        x, scale: the forward's inputs; dshift has scale's dtype.
        statistics: what the forward returned.
        shift_per_pixel: whether shift had x's shape.
        mask: bit i asks for output i; the others are empty tensors of size (0,).
        config: launch configuration; a heuristic one by default.
    """
    device = check_device("adain_backward", grad, x, statistics, scale)
    check_dtype("adain_backward", x, scale=scale)
    scale_map, shift_map = is_per_pixel(scale, x), shift_per_pixel and x.dim() > 2
    x, layout = native(x)
    if x.numel() == 0 or layout.spatial == 1:
        # A slice of one pixel is its own mean: exactly no gradient for x, nor for the scale.
        dshift = grad.reshape(x.shape if shift_map else x.shape[:2]) if layout.spatial == 1 else None
        if dshift is None:
            dshift = torch.zeros_like(x) if shift_map else x.new_zeros(x.shape[:2])
        results = torch.zeros_like(x), torch.zeros_like(scale), dshift.to(scale.dtype, copy=True)
        return tuple(t if mask >> i & 1 else t.new_empty(0) for i, t in enumerate(results))
    grad = in_layout(grad, layout)
    scale = in_layout(scale, layout) if scale_map else scale.contiguous()
    # Of the shift only shape, dtype and layout matter.
    if shift_map:
        shift = scale if scale_map else x if x.dtype == scale.dtype else torch.empty_like(x, dtype=scale.dtype)
    else:
        shift = scale.new_empty(x.shape[:2]) if scale_map else scale
    problem = _rows_of(layout)
    config = config or adain_config("adain_backward", problem, x.element_size(), 8192, device)
    tensors, statistics = (grad, x, scale, shift), statistics.contiguous()
    if not problem.channels_last:
        tensors = tuple(_as_rows(t, layout) for t in tensors)
        statistics = statistics.view(2, 1, problem.channels)
    g, features, s, b = tensors
    dx, _, _, dscale, dshift = group_norm_modulate_backward(
        g, features, *statistics.unbind(0), problem.channels, None, None, s, b, _IDENTITY,
        (mask & 1) | (mask & 6) << 2, config=config, relative=True,
    )  # fmt: skip
    shapes = (x.shape, scale.shape, x.shape if shift_map else x.shape[:2])
    results = (dx, dscale, dshift)
    return tuple(
        t.view(shape) if mask >> i & 1 and not problem.channels_last else t if mask >> i & 1 else like.new_empty(0)
        for i, (t, shape, like) in enumerate(zip(results, shapes, (x, scale, scale)))
    )
