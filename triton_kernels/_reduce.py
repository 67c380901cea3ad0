"""Second half of every deterministic reduction: partial sums (rows, columns) added row by row in a fixed order."""

import torch
import triton
import triton.language as tl

from ._launch import launch
from ._layout import ceil_div, next_power_of_two


@triton.jit
def add_in_memory(pointer, values):
    """Add to sums that a program keeps in global memory, where registers would grow with their number."""
    old = tl.load(pointer)
    # Where several threads hold one element, all must have read before one writes.
    tl.debug_barrier()
    tl.store(pointer, old + values)


@triton.jit
def _column_sum(partial_ptr, sum_ptr, tile, rows, columns, BLOCK_R: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    column = tile.to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    total = tl.zeros([BLOCK_R, BLOCK_COLUMNS], partial_ptr.dtype.element_ty)
    for begin in range(0, rows, BLOCK_R):
        row = begin + tl.arange(0, BLOCK_R).to(tl.int64)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        total += tl.load(partial_ptr + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
    tl.store(sum_ptr + column, tl.sum(total, axis=0).to(sum_ptr.dtype.element_ty), mask=column < columns)


@triton.jit
def _column_sums_kernel(
    first_ptr,
    first_sum_ptr,
    second_ptr,
    second_sum_ptr,
    rows,
    columns,
    BLOCK_R: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    tile = tl.program_id(0)
    if first_ptr is not None:
        _column_sum(first_ptr, first_sum_ptr, tile, rows, columns, BLOCK_R, BLOCK_COLUMNS)
    if second_ptr is not None:
        _column_sum(second_ptr, second_sum_ptr, tile, rows, columns, BLOCK_R, BLOCK_COLUMNS)


def column_sums(
    first: torch.Tensor | None,
    first_sum: torch.Tensor,
    second: torch.Tensor | None,
    second_sum: torch.Tensor,
    rows: int,
    columns: int,
) -> None:
    """Sum up to two contiguous ``(rows, columns)`` float32/float64 buffers over their rows, in one launch.

    The sums are written in the outputs' own dtype; a pair whose buffer is None is left out.
    """
    if first is None and second is None:
        return
    block_r = min(next_power_of_two(rows), 64)
    block_columns = max(16, 1024 // block_r)
    launch(
        _column_sums_kernel,
        ceil_div(columns, block_columns),
        (first if first is not None else second).device,
        first,
        None if first is None else first_sum,
        second,
        None if second is None else second_sum,
        rows,
        columns,
        BLOCK_R=block_r,
        BLOCK_COLUMNS=block_columns,
        num_warps=4,
    )
