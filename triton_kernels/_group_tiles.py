"""Tiles of whole or partial channel groups, shared by the kernels of group_norm_modulate and adain.

A tile is (BLOCK_C channel lanes, BLOCK_S positions) of one sample. It spans GP whole groups, each padded to
BLOCK_C / GP lanes, or (GP = 1) a part of one group; CG is the number of channels of a group. Strides are arguments,
so the same code walks both layouts.
"""

import triton
import triton.language as tl

from ._math import load


@triton.jit
def channel_lanes(group_tile, channel_tile, num_groups, CG: tl.constexpr, GP: tl.constexpr, BLOCK_C: tl.constexpr):
    """Channel of each lane, and whether it exists."""
    LANES: tl.constexpr = BLOCK_C // GP
    lane = tl.arange(0, BLOCK_C)
    if LANES == CG:
        # Groups lie side by side without gaps: the plain expression lets the compiler see contiguous channels.
        channel = group_tile * BLOCK_C + lane
        valid = channel < num_groups * CG
    else:
        within = channel_tile * LANES + lane % LANES
        group = group_tile * GP + lane // LANES
        channel = group * CG + within
        valid = (within < CG) & (group < num_groups)
    return channel.to(tl.int64), valid


@triton.jit
def over_groups(lanes, GP: tl.constexpr):
    """Sum the lanes of each group: (BLOCK_C,) -> (GP,)."""
    return tl.sum(tl.reshape(lanes, (GP, lanes.shape[0] // GP)), axis=1)


@triton.jit
def to_lanes(per_group, BLOCK_C: tl.constexpr):
    """Repeat one value per group on its lanes: (GP,) -> (BLOCK_C,)."""
    GP: tl.constexpr = per_group.shape[0]
    return tl.reshape(tl.broadcast_to(per_group[:, None], (GP, BLOCK_C // GP)), (BLOCK_C,))


@triton.jit
def first_elements(x_ptr, base, group_tile, num_groups, channel_stride, CG: tl.constexpr, GP: tl.constexpr):
    """First element of each group: subtracted before anything is summed, a big offset then costs no digits."""
    group = group_tile * GP + tl.arange(0, GP)
    return load(x_ptr + base + group.to(tl.int64) * CG * channel_stride, group < num_groups)


@triton.jit
def statistics(
    x_ptr,
    base,
    first,
    group_tile,
    num_groups,
    begin,
    end,
    channel_stride,
    spatial_stride,
    channel_tiles,
    CG: tl.constexpr,
    GP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
):
    """(mean - first, sum of squared deviations) of each group over positions [begin, end), reading x once.

    Welford's recurrence runs in every lane of the tile by itself; the lanes are then combined exactly (Chan).
    """
    shift = to_lanes(first, BLOCK_C)[:, None]
    mean = tl.zeros([BLOCK_C, BLOCK_S], first.dtype)
    square = tl.zeros([BLOCK_C, BLOCK_S], first.dtype)
    visited_rows = tl.zeros([BLOCK_C], tl.int32)
    column = tl.arange(0, BLOCK_S)
    length = (end - begin).to(tl.int32)
    sweeps = tl.cdiv(length, BLOCK_S)
    # How often one sweep over the positions meets a column: the last tile may be ragged.
    visits = tl.maximum(tl.cdiv(length - column, BLOCK_S), 0)
    for channel_tile in range(0, channel_tiles):
        channel, valid = channel_lanes(group_tile, channel_tile, num_groups, CG, GP, BLOCK_C)
        visited_rows += valid.to(tl.int32)
        for sweep in tl.range(0, sweeps, num_stages=STAGES):
            local = sweep * BLOCK_S + column
            mask = valid[:, None] & (local < length)[None, :]
            position = begin + local.to(tl.int64)
            offset = base + channel[:, None] * channel_stride + position[None, :] * spatial_stride
            # x is read again soon, by the second walk over the same tiles.
            d = load(x_ptr + offset, mask, "evict_last") - shift
            # Columns of the ragged last tile have been visited once less per sweep.
            full = 1.0 / (channel_tile * sweeps + sweep + 1).to(first.dtype)
            short = 1.0 / (channel_tile * (sweeps - 1) + sweep + 1).to(first.dtype)
            weight = tl.where(visits == sweeps, full, short)[None, :]
            delta = d - mean
            mean += tl.where(mask, delta * weight, 0.0)
            square += tl.where(mask, delta * (d - mean), 0.0)
    count = visited_rows.to(first.dtype)[:, None] * visits.to(first.dtype)[None, :]
    total = (length * CG).to(first.dtype)
    group_mean = over_groups(tl.sum(count * mean, axis=1), GP) / total
    deviation = mean - to_lanes(group_mean, BLOCK_C)[:, None]
    group_square = over_groups(tl.sum(square + count * deviation * deviation, axis=1), GP)
    return group_mean, group_square


@triton.jit
def lane_parameter(pointer, offset, valid, ABSENT: tl.constexpr, like):
    """A parameter of each lane as a column, or the constant ABSENT where the pointer is None."""
    if pointer is None:
        return tl.full([1, 1], ABSENT, like.dtype)
    else:
        return load(pointer + offset, valid)[:, None]


@triton.jit
def modulation(pointer, row, valid, PER_PIXEL: tl.constexpr, ABSENT: tl.constexpr, like):
    """A per-channel scale or shift as a column; the constant ABSENT where there is none or it is per pixel."""
    if PER_PIXEL:
        return tl.full([1, 1], ABSENT, like.dtype)
    else:
        return lane_parameter(pointer, row, valid, ABSENT, like)


@triton.jit
def pixel_modulation(pointer, column, offset, mask, PER_PIXEL: tl.constexpr):
    """The tile's scale or shift: loaded per pixel, or the column of its lanes."""
    if PER_PIXEL:
        return load(pointer + offset, mask)
    else:
        return column
