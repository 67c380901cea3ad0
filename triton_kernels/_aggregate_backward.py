"""Backward kernels behind ``aggregate``: one pass for the samples, one for the posteriors, no atomics.

Of each pair of sample i and posterior j the joint, the group's and each dim's softmax weight times their upstream
gradients add up to G; dz = -2 ln2 sum_j G t r, dmean = 2 ln2 r sum_i G t, dlogvar = sum_i G (ln2 t^2 - 1/2).
"""

import triton
import triton.language as tl

from ._aggregate_kernels import LN2, LOG2E, log2_weights, own_chunks, source_dim
from ._reduce import add_in_memory


@triton.jit
def _beside(values, ALONG: tl.constexpr):
    """A vector beside a (chunk, block) tile: along the block or along the chunk."""
    if ALONG:
        return values[None, :]
    else:
        return values[:, None]


@triton.jit
def _density(z_ptr, posterior_ptr, d, i, j, array, samples_padded, padded, POSTERIORS: tl.constexpr):
    """(t, L, r) of a dim for a tile of pairs."""
    at = posterior_ptr + d * padded + j
    z = _beside(tl.load(z_ptr + d * samples_padded + i), not POSTERIORS)
    mean = _beside(tl.load(at), POSTERIORS)
    r = _beside(tl.load(at + array), POSTERIORS)
    c = _beside(tl.load(at + 2 * array), POSTERIORS)
    t = (z - mean) * r
    return t, c - t * t, r


@triton.jit
def _softmax_weight(sums, value_ptr, grad_ptr, at, grad_at, mask, other, POSTERIORS: tl.constexpr):
    """Upstream gradient times the weight of each pair, from its log-density with the importance weight."""
    shift = tl.load(value_ptr + at, mask=mask, other=0.0) * LOG2E - other
    shift = tl.where(mask, shift, float("inf"))
    grad = tl.load(grad_ptr + grad_at, mask=mask, other=0.0)
    return _beside(grad, not POSTERIORS) * tl.exp2(sums - _beside(shift, not POSTERIORS))


@triton.jit
def _backward_chunk(
    samples_ptr, posterior_ptr, starts_ptr, joint_ptr, grad_joint_ptr, grouped_ptr, grad_grouped_ptr, out_ptr, lanes,
    chunk, samples, dims, groups, samples_padded, padded, out_padded, joint_row, grouped_row, grouped_column, delta,
    other, offset, MARGINAL: tl.constexpr, GROUPED: tl.constexpr, OWN: tl.constexpr, POSTERIORS: tl.constexpr,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    steps = chunk * CHUNK + tl.arange(0, CHUNK).to(tl.int64)
    i = steps if POSTERIORS else lanes
    j = lanes if POSTERIORS else steps
    real = i < samples
    array = dims * padded
    own = _beside(i + offset, not POSTERIORS) == _beside(j, POSTERIORS)
    dtype: tl.constexpr = samples_ptr.dtype.element_ty
    joint = tl.zeros([CHUNK, BLOCK], dtype)
    if grad_joint_ptr is not None:
        for d in range(0, dims):
            _, density, _ = _density(samples_ptr, posterior_ptr, d, i, j, array, samples_padded, padded, POSTERIORS)
            joint += density
        if OWN:
            joint = tl.where(own, joint + delta, joint)
        joint = _softmax_weight(joint, joint_ptr, grad_joint_ptr, i, i * joint_row, real, other, POSTERIORS)
    for g in range(0, groups):
        begin, end = 0, dims
        weight = joint
        if GROUPED:
            begin, end = tl.load(starts_ptr + g), tl.load(starts_ptr + g + 1)
            part = tl.zeros([CHUNK, BLOCK], dtype)
            for d in range(begin, end):
                _, density, _ = _density(samples_ptr, posterior_ptr, d, i, j, array, samples_padded, padded, POSTERIORS)
                part += density
            if OWN:
                part = tl.where(own, part + delta, part)
            grad_at = i * grouped_row + g * grouped_column
            weight += _softmax_weight(
                part, grouped_ptr, grad_grouped_ptr, i * groups + g, grad_at, real, other, POSTERIORS
            )
        for d in range(begin, end):
            t, density, r = _density(samples_ptr, posterior_ptr, d, i, j, array, samples_padded, padded, POSTERIORS)
            total = weight
            if MARGINAL:
                at = samples_ptr + (dims + d) * samples_padded + i
                shift = _beside(tl.load(at), not POSTERIORS)
                grad = _beside(tl.load(at + dims * samples_padded), not POSTERIORS)
                if OWN:
                    density = tl.where(own, density + delta, density)
                total += grad * tl.exp2(density - shift)
            to = out_ptr + d * out_padded + lanes
            if POSTERIORS:
                # t^2 may overflow where the weight is 0.
                square = tl.minimum(t * t, 1e38)
                add_in_memory(to, tl.sum(total * t, axis=0))
                add_in_memory(to + dims * out_padded, tl.sum(total * (square * LN2 - 0.5), axis=0))
            else:
                add_in_memory(to, tl.sum(total * t * r, axis=0))


@triton.jit
def _aggregate_backward_kernel(
    samples_ptr, posterior_ptr, starts_ptr, joint_ptr, grad_joint_ptr, grouped_ptr, grad_grouped_ptr, out_ptr, samples,
    dims, groups, samples_padded, padded, out_padded, rows, chunks, joint_row, grouped_row, grouped_column, posteriors,
    dataset_size, offset, splits, MARGINAL: tl.constexpr, GROUPED: tl.constexpr, POSTERIORS: tl.constexpr,
    WEIGHTS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Sums of a tile of samples (POSTERIORS: of posteriors) over one part of the other side, ``rows`` per part."""
    pid = tl.program_id(0)
    split = (pid % splits).to(tl.int64)
    first = pid // splits * BLOCK
    lanes = first + tl.arange(0, BLOCK).to(tl.int64)
    out_ptr += split * rows * out_padded
    dtype: tl.constexpr = samples_ptr.dtype.element_ty
    for row in range(0, rows):
        tl.store(out_ptr + row * out_padded + lanes, tl.zeros([BLOCK], dtype))
    tl.debug_barrier()
    begin, end = split * chunks // splits, (split + 1) * chunks // splits
    own, other = log2_weights(posteriors, dataset_size, dtype, WEIGHTS)
    low, count = begin, begin - begin
    if WEIGHTS == 0:
        own_first = first - offset if POSTERIORS else first + offset
        # A tile of posteriors may begin before the first sample's own one.
        low, count = own_chunks(tl.maximum(own_first, 0), tl.maximum(own_first + BLOCK, 0), begin, end, CHUNK)
        for chunk in range(low, low + count):
            _backward_chunk(
                samples_ptr, posterior_ptr, starts_ptr, joint_ptr, grad_joint_ptr, grouped_ptr, grad_grouped_ptr,
                out_ptr, lanes, chunk, samples, dims, groups, samples_padded, padded, out_padded, joint_row,
                grouped_row, grouped_column, own - other, other, offset, MARGINAL, GROUPED, True, POSTERIORS, BLOCK,
                CHUNK,
            )  # fmt: skip
    for index in range(begin, end - count):
        # Past the chunks that hold pairs of a sample and its own posterior: they are done.
        chunk = index + tl.where(index >= low, count, 0)
        _backward_chunk(
            samples_ptr, posterior_ptr, starts_ptr, joint_ptr, grad_joint_ptr, grouped_ptr, grad_grouped_ptr, out_ptr,
            lanes, chunk, samples, dims, groups, samples_padded, padded, out_padded, joint_row, grouped_row,
            grouped_column, own - other, other, offset, MARGINAL, GROUPED, False, POSTERIORS, BLOCK, CHUNK,
        )  # fmt: skip


@triton.jit
def _aggregate_gradients_kernel(
    sums_ptr, posterior_ptr, order_ptr, first_ptr, second_ptr, points, dims, rows, points_padded, splits,
    POSTERIORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The parts' sums become dz (points, dims), or dmean and dlogvar where the pointers are given."""
    tiles = points_padded // BLOCK
    pid = tl.program_id(0)
    row = pid // tiles
    point = (pid % tiles) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    at = row * points_padded + point
    total = tl.load(sums_ptr + at)
    for _ in range(1, splits):
        at += rows * points_padded
        total += tl.load(sums_ptr + at)
    mask = point < points
    d = row % dims
    to = point * dims + source_dim(order_ptr, d)
    if POSTERIORS:
        if row < dims:
            if first_ptr is not None:
                r = tl.load(posterior_ptr + (dims + d) * points_padded + point)
                tl.store(first_ptr + to, total * r * LN2 * 2.0, mask=mask)
        else:
            if second_ptr is not None:
                tl.store(second_ptr + to, total, mask=mask)
    else:
        tl.store(first_ptr + to, total * LN2 * -2.0, mask=mask)
