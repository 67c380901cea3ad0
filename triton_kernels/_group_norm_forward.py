"""Forward kernels of group_norm_modulate and adain: one for groups that fit a tile, two for the rest."""

import triton
import triton.language as tl

from ._group_tiles import (
    channel_lanes,
    first_elements,
    lane_parameter,
    modulation,
    over_groups,
    pixel_modulation,
    statistics,
    to_lanes,
)
from ._math import activate, inverse_sqrt, load


@triton.jit
def _store_statistics(
    mean_ptr, rstd_ptr, first, mean, rstd, sample, group_tile, num_groups, split, RELATIVE: tl.constexpr
):
    GP: tl.constexpr = mean.shape[0]
    if not RELATIVE:
        mean = first + mean
    group = group_tile * GP + tl.arange(0, GP)
    target = sample * num_groups + group
    # Every part has the same numbers; the first writes them.
    mask = (group < num_groups) & (group * 0 + split == 0)
    tl.store(mean_ptr + target, mean, mask=mask)
    tl.store(rstd_ptr + target, rstd, mask=mask)


@triton.jit
def _apply(
    x_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    base,
    sample,
    first,
    mean,
    rstd,
    group_tile,
    num_groups,
    begin,
    end,
    channel_stride,
    spatial_stride,
    channel_tiles,
    ACTIVATION: tl.constexpr,
    SCALE_PER_PIXEL: tl.constexpr,
    SHIFT_PER_PIXEL: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    first_lanes = to_lanes(first, BLOCK_C)[:, None]
    mean_lanes = to_lanes(mean, BLOCK_C)[:, None]
    rstd_lanes = to_lanes(rstd, BLOCK_C)[:, None]
    for channel_tile in range(0, channel_tiles):
        channel, valid = channel_lanes(group_tile, channel_tile, num_groups, CG, GP, BLOCK_C)
        row = sample * num_groups * CG + channel
        weight = lane_parameter(weight_ptr, channel, valid, 1.0, first)
        bias = lane_parameter(bias_ptr, channel, valid, 0.0, first)
        scale = modulation(scale_ptr, row, valid, SCALE_PER_PIXEL, 1.0, first)
        shift = modulation(shift_ptr, row, valid, SHIFT_PER_PIXEL, 0.0, first)
        for start in range(begin, end, BLOCK_S):
            position = start + tl.arange(0, BLOCK_S).to(tl.int64)
            mask = valid[:, None] & (position < end)[None, :]
            offset = base + channel[:, None] * channel_stride + position[None, :] * spatial_stride
            x = load(x_ptr + offset, mask, "evict_first")
            xhat = ((x - first_lanes) - mean_lanes) * rstd_lanes
            s = pixel_modulation(scale_ptr, scale, offset, mask, SCALE_PER_PIXEL)
            t = pixel_modulation(shift_ptr, shift, offset, mask, SHIFT_PER_PIXEL)
            y = activate(xhat * weight + bias, ACTIVATION) * s + t
            tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _group_norm_forward_resident_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    num_groups,
    group_tiles,
    spatial,
    channel_stride,
    spatial_stride,
    EPS: tl.constexpr,
    RELATIVE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE_PER_PIXEL: tl.constexpr,
    SHIFT_PER_PIXEL: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    # RELATIVE: the mean is kept relative to its group's first element, as adain's backward wants it.
    pid = tl.program_id(0)
    group_tile = pid % group_tiles
    sample = (pid // group_tiles).to(tl.int64)
    base = sample * num_groups * CG * spatial
    channel, valid = channel_lanes(group_tile, 0, num_groups, CG, GP, BLOCK_C)
    position = tl.arange(0, BLOCK_S).to(tl.int64)
    mask = valid[:, None] & (position < spatial)[None, :]
    offset = base + channel[:, None] * channel_stride + position[None, :] * spatial_stride
    x = load(x_ptr + offset, mask)
    first = first_elements(x_ptr, base, group_tile, num_groups, channel_stride, CG, GP)
    d = tl.where(mask, x - to_lanes(first, BLOCK_C)[:, None], 0.0)
    total = tl.full([1], CG, first.dtype) * spatial
    mean = over_groups(tl.sum(d, axis=1), GP) / total
    d = tl.where(mask, d - to_lanes(mean, BLOCK_C)[:, None], 0.0)
    rstd = inverse_sqrt(over_groups(tl.sum(d * d, axis=1), GP) / total + EPS)
    _store_statistics(mean_ptr, rstd_ptr, first, mean, rstd, sample, group_tile, num_groups, 0, RELATIVE)
    row = sample * num_groups * CG + channel
    weight = lane_parameter(weight_ptr, channel, valid, 1.0, first)
    bias = lane_parameter(bias_ptr, channel, valid, 0.0, first)
    scale = modulation(scale_ptr, row, valid, SCALE_PER_PIXEL, 1.0, first)
    shift = modulation(shift_ptr, row, valid, SHIFT_PER_PIXEL, 0.0, first)
    s = pixel_modulation(scale_ptr, scale, offset, mask, SCALE_PER_PIXEL)
    t = pixel_modulation(shift_ptr, shift, offset, mask, SHIFT_PER_PIXEL)
    xhat = d * to_lanes(rstd, BLOCK_C)[:, None]
    y = activate(xhat * weight + bias, ACTIVATION) * s + t
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _group_norm_statistics_kernel(
    x_ptr,
    partial_mean_ptr,
    partial_square_ptr,
    num_groups,
    group_tiles,
    spatial,
    channel_stride,
    spatial_stride,
    channel_tiles,
    chunk,
    splits,
    CG: tl.constexpr,
    GP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
):
    pid = tl.program_id(0)
    split = pid % splits
    group_tile = (pid // splits) % group_tiles
    sample = (pid // splits // group_tiles).to(tl.int64)
    base = sample * num_groups * CG * spatial
    begin = split.to(tl.int64) * chunk
    end = tl.minimum(begin + chunk, spatial)
    first = first_elements(x_ptr, base, group_tile, num_groups, channel_stride, CG, GP)
    mean, square = statistics(
        x_ptr, base, first, group_tile, num_groups, begin, end, channel_stride, spatial_stride, channel_tiles,
        CG, GP, BLOCK_C, BLOCK_S, STAGES,
    )  # fmt: skip
    group = group_tile * GP + tl.arange(0, GP)
    target = (sample * num_groups + group) * splits + split
    tl.store(partial_mean_ptr + target, mean, mask=group < num_groups)
    tl.store(partial_square_ptr + target, square, mask=group < num_groups)


@triton.jit
def _group_norm_forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    partial_mean_ptr,
    partial_square_ptr,
    num_groups,
    group_tiles,
    spatial,
    channel_stride,
    spatial_stride,
    channel_tiles,
    chunk,
    splits,
    EPS: tl.constexpr,
    RELATIVE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE_PER_PIXEL: tl.constexpr,
    SHIFT_PER_PIXEL: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    # Without partial statistics (None) the program computes its groups' own, over all positions.
    pid = tl.program_id(0)
    split = pid % splits
    group_tile = (pid // splits) % group_tiles
    sample = (pid // splits // group_tiles).to(tl.int64)
    base = sample * num_groups * CG * spatial
    begin = split.to(tl.int64) * chunk
    end = tl.minimum(begin + chunk, spatial)
    first = first_elements(x_ptr, base, group_tile, num_groups, channel_stride, CG, GP)
    total = tl.full([1], CG, first.dtype) * spatial
    if partial_mean_ptr is None:
        mean, square = statistics(
            x_ptr, base, first, group_tile, num_groups, begin, end, channel_stride, spatial_stride, channel_tiles,
            CG, GP, BLOCK_C, BLOCK_S, STAGES,
        )  # fmt: skip
    else:
        # Chan's combination: every part's mean and squares, in the order of the parts.
        part = tl.arange(0, BLOCK_SPLITS)
        group = group_tile * GP + tl.arange(0, GP)
        known = (group < num_groups)[:, None] & (part < splits)[None, :]
        source = (sample * num_groups + group)[:, None] * splits + part[None, :]
        part_mean = load(partial_mean_ptr + source, known)
        part_square = load(partial_square_ptr + source, known)
        size = tl.minimum(chunk, spatial - part.to(tl.int64) * chunk)
        count = tl.where(part < splits, size * CG, 0).to(first.dtype)[None, :]
        mean = tl.sum(count * part_mean, axis=1) / total
        deviation = part_mean - mean[:, None]
        square = tl.sum(part_square + count * deviation * deviation, axis=1)
    rstd = inverse_sqrt(square / total + EPS)
    _store_statistics(mean_ptr, rstd_ptr, first, mean, rstd, sample, group_tile, num_groups, split, RELATIVE)
    _apply(
        x_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, y_ptr, base, sample, first, mean, rstd,
        group_tile, num_groups, begin, end, channel_stride, spatial_stride, channel_tiles,
        ACTIVATION, SCALE_PER_PIXEL, SHIFT_PER_PIXEL, CG, GP, BLOCK_C, BLOCK_S,
    )  # fmt: skip
