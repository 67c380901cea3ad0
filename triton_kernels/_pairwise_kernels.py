"""Kernels over pairs of points behind ``pairwise``.

Points lie as (dim, point), padded to whole tiles. A program owns a tile of points, one per thread, and passes over
chunks of all points; a gradient's dims lie in global memory, so that registers do not grow with them.
"""

import triton
import triton.language as tl

from ._reduce import add_in_memory


@triton.jit
def _squares(z_ptr, i, j, dims, padded, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """(chunk, block) squared distances; of differences, since the expanded square loses the digits of close points."""
    total = tl.zeros([CHUNK, BLOCK], z_ptr.dtype.element_ty)
    for d in range(0, dims):
        difference = tl.load(z_ptr + d * padded + i)[None, :] - tl.load(z_ptr + d * padded + j)[:, None]
        total += difference * difference
    return total


@triton.jit
def _kernel_and_factor(square, RBF: tl.constexpr, WIDTHS: tl.constexpr, FACTORS: tl.constexpr):
    """k and f of dk/da = f (a - b), summed over the bandwidths: k is 2^(width s) or width / (width + s)."""
    total = tl.zeros(square.shape, square.dtype)
    factor = tl.zeros(square.shape, square.dtype)
    for n in tl.static_range(len(WIDTHS)):
        if RBF:
            k = tl.exp2(square * WIDTHS[n])
            factor += k * FACTORS[n]
        else:
            k = WIDTHS[n] / (square + WIDTHS[n])
            factor += k * k * FACTORS[n]
        total += k
    return total, factor


@triton.jit
def _add_slopes(weight, z_ptr, out_ptr, i, j, dims, padded):
    for d in range(0, dims):
        difference = tl.load(z_ptr + d * padded + i)[None, :] - tl.load(z_ptr + d * padded + j)[:, None]
        add_in_memory(out_ptr + d * padded + i, tl.sum(weight * difference, axis=0))


@triton.jit
def _clear(out_ptr, i, rows, padded, BLOCK: tl.constexpr):
    for row in range(0, rows):
        tl.store(out_ptr + row * padded + i, tl.zeros([BLOCK], out_ptr.dtype.element_ty))
    tl.debug_barrier()


@triton.jit
def _mmd_kernel(
    z_ptr, slope_ptr, sums_ptr, points, first, second, dims, padded, tiles, chunks, slices, splits,
    RBF: tl.constexpr, WIDTHS: tl.constexpr, FACTORS: tl.constexpr, UNBIASED: tl.constexpr, BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Of a tile of points and a slice of ``dims`` coordinates: sums of w k over one part of all points, and slopes.

    w is 1 / pairs within a sample and -1 / (first second) across; a point's pair with itself is left out.
    """
    pid = tl.program_id(0)
    split = (pid % splits).to(tl.int64)
    tile = pid // splits % tiles
    part = pid // splits // tiles
    i = tile * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    n, m = tl.full([], first, dtype), tl.full([], second, dtype)
    own = tl.where(i < first, n, m)
    inside = 1.0 / (own * (own - 1.0) if UNBIASED else own * own)
    across = -1.0 / (n * m)
    z_ptr += part * dims * padded
    row = split * slices + part
    if slope_ptr is not None:
        slope_ptr += row * dims * padded
        _clear(slope_ptr, i, dims, padded, BLOCK)
    total = tl.zeros([BLOCK], dtype)
    for chunk in range(split * chunks // splits, (split + 1) * chunks // splits):
        j = chunk * CHUNK + tl.arange(0, CHUNK).to(tl.int64)
        k, factor = _kernel_and_factor(_squares(z_ptr, i, j, dims, padded, BLOCK, CHUNK), RBF, WIDTHS, FACTORS)
        counts = (j < points)[:, None] & (j[:, None] != i[None, :])
        same = (j < first)[:, None] == (i < first)[None, :]
        weight = tl.where(counts, tl.where(same, inside[None, :], across), 0.0)
        total += tl.sum(weight * k, axis=0)
        if slope_ptr is not None:
            _add_slopes(2.0 * weight * factor, z_ptr, slope_ptr, i, j, dims, padded)
    tl.store(sums_ptr + row * padded + i, tl.where(i < points, total, 0.0))


@triton.jit
def _hsic_forward_kernel(
    x_ptr, y_ptr, sums_ptr, points, dims_x, dims_y, padded, chunks, splits, RBF: tl.constexpr, WIDTHS_X: tl.constexpr,
    FACTORS_X: tl.constexpr, WIDTHS_Y: tl.constexpr, FACTORS_Y: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Of a tile of points: sums of k, l and k l over one part of the other points."""
    pid = tl.program_id(0)
    split = (pid % splits).to(tl.int64)
    i = pid // splits * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    sum_k = tl.zeros([BLOCK], dtype)
    sum_l = tl.zeros([BLOCK], dtype)
    sum_kl = tl.zeros([BLOCK], dtype)
    for chunk in range(split * chunks // splits, (split + 1) * chunks // splits):
        j = chunk * CHUNK + tl.arange(0, CHUNK).to(tl.int64)
        counts = (j < points)[:, None] & (j[:, None] != i[None, :])
        k, _ = _kernel_and_factor(_squares(x_ptr, i, j, dims_x, padded, BLOCK, CHUNK), RBF, WIDTHS_X, FACTORS_X)
        m, _ = _kernel_and_factor(_squares(y_ptr, i, j, dims_y, padded, BLOCK, CHUNK), RBF, WIDTHS_Y, FACTORS_Y)
        k = tl.where(counts, k, 0.0)
        sum_k += tl.sum(k, axis=0)
        sum_l += tl.sum(tl.where(counts, m, 0.0), axis=0)
        sum_kl += tl.sum(k * m, axis=0)
    at = sums_ptr + split * 3 * padded + i
    tl.store(at, sum_k)
    tl.store(at + padded, sum_l)
    tl.store(at + 2 * padded, sum_kl)


@triton.jit
def _hsic_backward_kernel(
    x_ptr, y_ptr, centre_x_ptr, centre_y_ptr, slope_x_ptr, slope_y_ptr, points, dims_x, dims_y, padded, chunks, splits,
    RBF: tl.constexpr, WIDTHS_X: tl.constexpr, FACTORS_X: tl.constexpr, WIDTHS_Y: tl.constexpr,
    FACTORS_Y: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Of a tile of points: sums of (l - v_i - v_j) f (x_i - x_j), and with the roles swapped, over one part."""
    pid = tl.program_id(0)
    split = (pid % splits).to(tl.int64)
    i = pid // splits * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    real = i < points
    # An output that is not asked for has the pointer None.
    if slope_x_ptr is not None:
        slope_x_ptr += split * dims_x * padded
        _clear(slope_x_ptr, i, dims_x, padded, BLOCK)
    if slope_y_ptr is not None:
        slope_y_ptr += split * dims_y * padded
        _clear(slope_y_ptr, i, dims_y, padded, BLOCK)
    u_i = tl.load(centre_x_ptr + i, mask=real, other=0.0)
    v_i = tl.load(centre_y_ptr + i, mask=real, other=0.0)
    for chunk in range(split * chunks // splits, (split + 1) * chunks // splits):
        j = chunk * CHUNK + tl.arange(0, CHUNK).to(tl.int64)
        others = j < points
        counts = others[:, None] & real[None, :]
        k, factor_k = _kernel_and_factor(_squares(x_ptr, i, j, dims_x, padded, BLOCK, CHUNK), RBF, WIDTHS_X, FACTORS_X)
        m, factor_m = _kernel_and_factor(_squares(y_ptr, i, j, dims_y, padded, BLOCK, CHUNK), RBF, WIDTHS_Y, FACTORS_Y)
        if slope_x_ptr is not None:
            v_j = tl.load(centre_y_ptr + j, mask=others, other=0.0)
            weight = tl.where(counts, factor_k * ((m - v_i[None, :]) - v_j[:, None]), 0.0)
            _add_slopes(weight, x_ptr, slope_x_ptr, i, j, dims_x, padded)
        if slope_y_ptr is not None:
            u_j = tl.load(centre_x_ptr + j, mask=others, other=0.0)
            weight = tl.where(counts, factor_m * ((k - u_i[None, :]) - u_j[:, None]), 0.0)
            _add_slopes(weight, y_ptr, slope_y_ptr, i, j, dims_y, padded)
