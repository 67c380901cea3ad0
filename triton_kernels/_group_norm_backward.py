"""Backward kernels of group_norm_modulate and adain.

With du = scale * grad * act'(u) and h = weight * du, dx = rstd (h - mean(h) - xhat mean(h xhat)) over the group. Sums
over positions are kept per (sample, channel): the group's means and every parameter's gradient follow from them.
"""

import triton
import triton.language as tl

from ._group_tiles import (
    channel_lanes,
    first_elements,
    lane_parameter,
    modulation,
    over_groups,
    pixel_modulation,
    to_lanes,
)
from ._math import activate_with_slope, load


@triton.jit
def _group_statistics(
    x_ptr,
    mean_ptr,
    rstd_ptr,
    base,
    sample,
    group_tile,
    num_groups,
    channel_stride,
    RELATIVE: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
):
    """(first, mean, rstd) of each group; the mean is relative to the first element, which else is 0."""
    group = group_tile * GP + tl.arange(0, GP)
    source = sample * num_groups + group
    mean = load(mean_ptr + source, group < num_groups)
    first = tl.zeros([GP], mean.dtype)
    if RELATIVE:
        first = first_elements(x_ptr, base, group_tile, num_groups, channel_stride, CG, GP)
    return first, mean, load(rstd_ptr + source, group < num_groups)


@triton.jit
def _tile_gradients(
    x,
    grad,
    scale_ptr,
    offset,
    mask,
    first,
    mean,
    rstd,
    weight,
    bias,
    scale,
    ACTIVATION: tl.constexpr,
    PER_PIXEL: tl.constexpr,
):
    """(xhat, act(u), du) of a tile."""
    xhat = ((x - first) - mean) * rstd
    value, slope = activate_with_slope(xhat * weight + bias, ACTIVATION)
    return xhat, value, grad * slope * pixel_modulation(scale_ptr, scale, offset, mask, PER_PIXEL)


@triton.jit
def _store_tile(pointer, offset, value, mask):
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _group_norm_backward_resident_kernel(
    grad_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    dscale_ptr,
    dshift_ptr,
    num_groups,
    group_tiles,
    spatial,
    channel_stride,
    spatial_stride,
    RELATIVE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE_PER_PIXEL: tl.constexpr,
    SHIFT_PER_PIXEL: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    # An output that is not asked for has the pointer None.
    pid = tl.program_id(0)
    group_tile = pid % group_tiles
    sample = (pid // group_tiles).to(tl.int64)
    base = sample * num_groups * CG * spatial
    channel, valid = channel_lanes(group_tile, 0, num_groups, CG, GP, BLOCK_C)
    row = sample * num_groups * CG + channel
    position = tl.arange(0, BLOCK_S).to(tl.int64)
    mask = valid[:, None] & (position < spatial)[None, :]
    offset = base + channel[:, None] * channel_stride + position[None, :] * spatial_stride
    grad = load(grad_ptr + offset, mask)
    x = load(x_ptr + offset, mask)
    first, mean, rstd = _group_statistics(
        x_ptr, mean_ptr, rstd_ptr, base, sample, group_tile, num_groups, channel_stride, RELATIVE, CG, GP
    )
    first_lanes = to_lanes(first, BLOCK_C)[:, None]
    rstd_lanes = to_lanes(rstd, BLOCK_C)[:, None]
    weight = lane_parameter(weight_ptr, channel, valid, 1.0, mean)
    bias = lane_parameter(bias_ptr, channel, valid, 0.0, mean)
    scale = modulation(scale_ptr, row, valid, SCALE_PER_PIXEL, 1.0, mean)
    xhat, value, du = _tile_gradients(
        x, grad, scale_ptr, offset, mask, first_lanes, to_lanes(mean, BLOCK_C)[:, None], rstd_lanes, weight, bias,
        scale, ACTIVATION, SCALE_PER_PIXEL,
    )  # fmt: skip
    if dshift_ptr is not None:
        if SHIFT_PER_PIXEL:
            _store_tile(dshift_ptr, offset, grad, mask)
        else:
            _store_tile(dshift_ptr, row, tl.sum(grad, axis=1), valid)
    if dscale_ptr is not None:
        if SCALE_PER_PIXEL:
            _store_tile(dscale_ptr, offset, grad * value, mask)
        else:
            _store_tile(dscale_ptr, row, tl.sum(grad * value, axis=1), valid)
    du_sum = tl.sum(du, axis=1)
    du_xhat_sum = tl.sum(du * xhat, axis=1)
    if dbias_ptr is not None:
        _store_tile(dbias_ptr, row, du_sum, valid)
    if dweight_ptr is not None:
        _store_tile(dweight_ptr, row, du_xhat_sum, valid)
    if dx_ptr is not None:
        total = tl.full([1], CG, mean.dtype) * spatial
        h = over_groups(tl.sum(weight * du_sum[:, None], axis=1), GP) / total
        h_xhat = over_groups(tl.sum(weight * du_xhat_sum[:, None], axis=1), GP) / total
        centred = weight * du - to_lanes(h, BLOCK_C)[:, None] - xhat * to_lanes(h_xhat, BLOCK_C)[:, None]
        _store_tile(dx_ptr, offset, rstd_lanes * centred, mask)


@triton.jit
def _sums(
    grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    dweight_ptr,
    dbias_ptr,
    dscale_ptr,
    dshift_ptr,
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
    target,
    ACTIVATION: tl.constexpr,
    SCALE_PER_PIXEL: tl.constexpr,
    SHIFT_PER_PIXEL: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Store the per-channel sums over [begin, end) at ``target`` + row; return each group's sums of h and h xhat."""
    first_lanes = to_lanes(first, BLOCK_C)[:, None]
    mean_lanes = to_lanes(mean, BLOCK_C)[:, None]
    rstd_lanes = to_lanes(rstd, BLOCK_C)[:, None]
    h = tl.zeros([GP], mean.dtype)
    h_xhat = tl.zeros([GP], mean.dtype)
    for channel_tile in range(0, channel_tiles):
        channel, valid = channel_lanes(group_tile, channel_tile, num_groups, CG, GP, BLOCK_C)
        row = sample * num_groups * CG + channel
        weight = lane_parameter(weight_ptr, channel, valid, 1.0, mean)
        bias = lane_parameter(bias_ptr, channel, valid, 0.0, mean)
        scale = modulation(scale_ptr, row, valid, SCALE_PER_PIXEL, 1.0, mean)
        du_sum = tl.zeros([BLOCK_C, BLOCK_S], mean.dtype)
        du_xhat_sum = tl.zeros([BLOCK_C, BLOCK_S], mean.dtype)
        scale_sum = tl.zeros([BLOCK_C, BLOCK_S], mean.dtype)
        shift_sum = tl.zeros([BLOCK_C, BLOCK_S], mean.dtype)
        for start in tl.range(begin, end, BLOCK_S, num_stages=STAGES):
            position = start + tl.arange(0, BLOCK_S).to(tl.int64)
            mask = valid[:, None] & (position < end)[None, :]
            offset = base + channel[:, None] * channel_stride + position[None, :] * spatial_stride
            # Both are read again soon, by the second walk over the same tiles.
            grad = load(grad_ptr + offset, mask, "evict_last")
            x = load(x_ptr + offset, mask, "evict_last")
            xhat, value, du = _tile_gradients(
                x, grad, scale_ptr, offset, mask, first_lanes, mean_lanes, rstd_lanes, weight, bias, scale,
                ACTIVATION, SCALE_PER_PIXEL,
            )  # fmt: skip
            du_sum += du
            du_xhat_sum += du * xhat
            if dscale_ptr is not None:
                if SCALE_PER_PIXEL:
                    _store_tile(dscale_ptr, offset, grad * value, mask)
                else:
                    scale_sum += grad * value
            if dshift_ptr is not None:
                if SHIFT_PER_PIXEL:
                    _store_tile(dshift_ptr, offset, grad, mask)
                else:
                    shift_sum += grad
        du_row = tl.sum(du_sum, axis=1)
        du_xhat_row = tl.sum(du_xhat_sum, axis=1)
        if dweight_ptr is not None:
            _store_tile(dweight_ptr, target + row, du_xhat_row, valid)
        if dbias_ptr is not None:
            _store_tile(dbias_ptr, target + row, du_row, valid)
        if dscale_ptr is not None and not SCALE_PER_PIXEL:
            _store_tile(dscale_ptr, target + row, tl.sum(scale_sum, axis=1), valid)
        if dshift_ptr is not None and not SHIFT_PER_PIXEL:
            _store_tile(dshift_ptr, target + row, tl.sum(shift_sum, axis=1), valid)
        h += over_groups(tl.sum(weight * du_row[:, None], axis=1), GP)
        h_xhat += over_groups(tl.sum(weight * du_xhat_row[:, None], axis=1), GP)
    return h, h_xhat


@triton.jit
def _group_norm_sums_kernel(
    grad_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    dweight_ptr,
    dbias_ptr,
    dscale_ptr,
    dshift_ptr,
    num_groups,
    group_tiles,
    spatial,
    channel_stride,
    spatial_stride,
    channel_tiles,
    chunk,
    splits,
    rows,
    RELATIVE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE_PER_PIXEL: tl.constexpr,
    SHIFT_PER_PIXEL: tl.constexpr,
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
    begin = split.to(tl.int64) * chunk
    end = tl.minimum(begin + chunk, spatial)
    base = sample * num_groups * CG * spatial
    first, mean, rstd = _group_statistics(
        x_ptr, mean_ptr, rstd_ptr, base, sample, group_tile, num_groups, channel_stride, RELATIVE, CG, GP
    )
    _sums(
        grad_ptr, x_ptr, weight_ptr, bias_ptr, scale_ptr, dweight_ptr, dbias_ptr, dscale_ptr, dshift_ptr,
        base, sample, first, mean, rstd, group_tile, num_groups, begin, end,
        channel_stride, spatial_stride, channel_tiles, split.to(tl.int64) * rows,
        ACTIVATION, SCALE_PER_PIXEL, SHIFT_PER_PIXEL, CG, GP, BLOCK_C, BLOCK_S, STAGES,
    )  # fmt: skip


@triton.jit
def _group_norm_backward_kernel(
    grad_ptr,
    x_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    dscale_ptr,
    dshift_ptr,
    num_groups,
    group_tiles,
    spatial,
    channel_stride,
    spatial_stride,
    channel_tiles,
    chunk,
    splits,
    rows,
    RELATIVE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE_PER_PIXEL: tl.constexpr,
    SHIFT_PER_PIXEL: tl.constexpr,
    CG: tl.constexpr,
    GP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    PARTIAL: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    # PARTIAL: the sums kernel ran, and left (splits, N, C) sums of du xhat and du in dweight_ptr and dbias_ptr.
    pid = tl.program_id(0)
    split = pid % splits
    group_tile = (pid // splits) % group_tiles
    sample = (pid // splits // group_tiles).to(tl.int64)
    base = sample * num_groups * CG * spatial
    begin = split.to(tl.int64) * chunk
    end = tl.minimum(begin + chunk, spatial)
    first, mean, rstd = _group_statistics(
        x_ptr, mean_ptr, rstd_ptr, base, sample, group_tile, num_groups, channel_stride, RELATIVE, CG, GP
    )
    if PARTIAL:
        part = tl.arange(0, BLOCK_SPLITS).to(tl.int64)
        h = tl.zeros([GP], mean.dtype)
        h_xhat = tl.zeros([GP], mean.dtype)
        for channel_tile in range(0, channel_tiles):
            channel, valid = channel_lanes(group_tile, channel_tile, num_groups, CG, GP, BLOCK_C)
            weight = lane_parameter(weight_ptr, channel, valid, 1.0, mean)
            source = part[None, :] * rows + (sample * num_groups * CG + channel)[:, None]
            known = valid[:, None] & (part < splits)[None, :]
            h += over_groups(tl.sum(weight * load(dbias_ptr + source, known), axis=1), GP)
            h_xhat += over_groups(tl.sum(weight * load(dweight_ptr + source, known), axis=1), GP)
    else:
        h, h_xhat = _sums(
            grad_ptr, x_ptr, weight_ptr, bias_ptr, scale_ptr, dweight_ptr, dbias_ptr, dscale_ptr, dshift_ptr,
            base, sample, first, mean, rstd, group_tile, num_groups, begin, end,
            channel_stride, spatial_stride, channel_tiles, split.to(tl.int64) * rows,
            ACTIVATION, SCALE_PER_PIXEL, SHIFT_PER_PIXEL, CG, GP, BLOCK_C, BLOCK_S, STAGES,
        )  # fmt: skip
    total = tl.full([1], CG, mean.dtype) * spatial
    first_lanes = to_lanes(first, BLOCK_C)[:, None]
    mean_lanes = to_lanes(mean, BLOCK_C)[:, None]
    rstd_lanes = to_lanes(rstd, BLOCK_C)[:, None]
    h_lanes = to_lanes(h / total, BLOCK_C)[:, None]
    h_xhat_lanes = to_lanes(h_xhat / total, BLOCK_C)[:, None]
    for channel_tile in range(0, channel_tiles):
        channel, valid = channel_lanes(group_tile, channel_tile, num_groups, CG, GP, BLOCK_C)
        row = sample * num_groups * CG + channel
        weight = lane_parameter(weight_ptr, channel, valid, 1.0, mean)
        bias = lane_parameter(bias_ptr, channel, valid, 0.0, mean)
        scale = modulation(scale_ptr, row, valid, SCALE_PER_PIXEL, 1.0, mean)
        for start in range(begin, end, BLOCK_S):
            position = start + tl.arange(0, BLOCK_S).to(tl.int64)
            mask = valid[:, None] & (position < end)[None, :]
            offset = base + channel[:, None] * channel_stride + position[None, :] * spatial_stride
            grad = load(grad_ptr + offset, mask, "evict_first")
            x = load(x_ptr + offset, mask, "evict_first")
            xhat, _value, du = _tile_gradients(
                x, grad, scale_ptr, offset, mask, first_lanes, mean_lanes, rstd_lanes, weight, bias, scale,
                ACTIVATION, SCALE_PER_PIXEL,
            )  # fmt: skip
            _store_tile(dx_ptr, offset, rstd_lanes * (weight * du - h_lanes - xhat * h_xhat_lanes), mask)
