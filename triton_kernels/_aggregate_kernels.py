"""Forward kernels over (sample, posterior) pairs behind ``aggregate``, and what both directions share.

Exponents are in base 2: r = k e^(-logvar/2), k^2 = log2(e)/2, t = (z - mean) r, and the log-density is L = c - t^2.
Points lie as (dim, sample) and (dim, posterior), padded to whole tiles, so that no pair needs a mask: a posterior of
the padding has c = -inf. A program owns a tile of samples (or posteriors), one per thread, and passes over chunks of
the other side; what it knows about a dim so far lies in global memory, so that registers do not grow with the dims.
"""

import triton
import triton.language as tl

from ._math import load

# sqrt(log2(e) / 2), log2(2 pi) / 2, log2(e) / 2
ROOT_HALF_LOG2E = tl.constexpr(0.8493218002880191)
HALF_LOG2_TWO_PI = tl.constexpr(1.3257480647361595)
HALF_LOG2E = tl.constexpr(0.7213475204444817)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def log2_weights(posteriors, dataset_size, DTYPE: tl.constexpr, WEIGHTS: tl.constexpr):
    """Importance weights of a sample's own posterior and of another one: mss 0, mws 1, naive 2."""
    count = tl.full([], posteriors, DTYPE)
    if WEIGHTS == 2:
        other = -tl.log2(count)
        own = other
    else:
        size = tl.full([], dataset_size, DTYPE)
        if WEIGHTS == 1:
            other = -tl.log2(size) - tl.log2(count)
            own = other
        else:
            # One posterior is all there is (N = 1), and the logarithms would be of 0.
            alone = count == 1.0
            own = -tl.log2(size)
            share = tl.where(alone, 1.0, (size - 1.0) / size)
            other = tl.log2(share) - tl.log2(tl.where(alone, 1.0, count - 1.0))
    return own, other


@triton.jit
def source_dim(order_ptr, d):
    """Which dim of the caller's lies in row d: groups are brought together."""
    if order_ptr is None:
        return d
    else:
        return tl.load(order_ptr + d)


@triton.jit
def own_chunks(first, last, begin, end, CHUNK: tl.constexpr):
    """Of the chunks [begin, end) those that hold an item of [first, last): the first of them, and how many."""
    low = tl.minimum(tl.maximum(first // CHUNK, begin), end)
    high = tl.minimum(tl.maximum((last + CHUNK - 1) // CHUNK, low), end)
    return low, high - low


@triton.jit
def _aggregate_posteriors_kernel(
    mean_ptr, logvar_ptr, order_ptr, out_ptr, posteriors, dims, padded, mean_row, mean_column, logvar_row,
    logvar_column, BLOCK: tl.constexpr,
):  # fmt: skip
    """mean, r and c of every posterior, each (dim, posterior)."""
    tiles = padded // BLOCK
    pid = tl.program_id(0)
    d = pid // tiles
    j = (pid % tiles) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    source = source_dim(order_ptr, d)
    mask = j < posteriors
    mean = load(mean_ptr + j * mean_row + source * mean_column, mask)
    logvar = load(logvar_ptr + j * logvar_row + source * logvar_column, mask)
    at = out_ptr + d * padded + j
    tl.store(at, mean)
    at += dims * padded
    tl.store(at, tl.where(mask, tl.exp(-0.5 * logvar) * ROOT_HALF_LOG2E, 1.0))
    at += dims * padded
    tl.store(at, tl.where(mask, -logvar * HALF_LOG2E - HALF_LOG2_TWO_PI, -float("inf")))


@triton.jit
def _aggregate_samples_kernel(
    z_ptr, marginal_ptr, grad_ptr, order_ptr, out_ptr, samples, dims, padded, z_row, z_column, grad_row, grad_column,
    posteriors, dataset_size, WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(dim, sample): z and, for the backward, the logarithms of the marginal softmax denominators, and gradients."""
    tiles = padded // BLOCK
    pid = tl.program_id(0)
    d = pid // tiles
    i = (pid % tiles) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    source = source_dim(order_ptr, d)
    mask = i < samples
    at = out_ptr + d * padded + i
    tl.store(at, load(z_ptr + i * z_row + source * z_column, mask))
    if grad_ptr is not None:
        _, other = log2_weights(posteriors, dataset_size, z_ptr.dtype.element_ty, WEIGHTS)
        marginal = load(marginal_ptr + i * dims + source, mask)
        at += dims * padded
        # A sample of the padding has weight 0.
        tl.store(at, tl.where(mask, marginal * LOG2E - other, float("inf")))
        at += dims * padded
        tl.store(at, load(grad_ptr + i * grad_row + source * grad_column, mask))


@triton.jit
def _add_to_sum(values, top_ptr, sum_ptr, at):
    """One more chunk of a running sum of powers of two, kept as its largest exponent and the sum over it."""
    top_old = tl.load(top_ptr + at)
    sum_old = tl.load(sum_ptr + at)
    # Where several threads hold one sample, all must have read before one writes.
    tl.debug_barrier()
    top = tl.maximum(top_old, tl.max(values, axis=0))
    # While all exponents are -inf, their difference would be NaN.
    shift = tl.where(top == -float("inf"), 0.0, top)
    total = sum_old * tl.exp2(top_old - shift) + tl.sum(tl.exp2(values - shift[None, :]), axis=0)
    tl.store(top_ptr + at, top)
    tl.store(sum_ptr + at, total)


@triton.jit
def _forward_chunk(
    z_ptr, posterior_ptr, starts_ptr, top_ptr, sum_ptr, i, chunk, dims, groups, samples_padded, padded, delta, offset,
    GROUPED: tl.constexpr, OWN: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    j = chunk * CHUNK + tl.arange(0, CHUNK).to(tl.int64)
    own = j[:, None] == (i + offset)[None, :]
    total = tl.zeros([CHUNK, BLOCK], z_ptr.dtype.element_ty)
    for g in range(0, groups):
        begin, end = 0, dims
        if GROUPED:
            begin, end = tl.load(starts_ptr + g), tl.load(starts_ptr + g + 1)
        part = tl.zeros([CHUNK, BLOCK], z_ptr.dtype.element_ty)
        for d in range(begin, end):
            at = posterior_ptr + d * padded + j
            z = tl.load(z_ptr + d * samples_padded + i)
            mean = tl.load(at)
            r = tl.load(at + dims * padded)
            c = tl.load(at + 2 * dims * padded)
            t = (z[None, :] - mean[:, None]) * r[:, None]
            density = c[:, None] - t * t
            part += density
            if OWN:
                density = tl.where(own, density + delta, density)
            _add_to_sum(density, top_ptr, sum_ptr, d * samples_padded + i)
        total += part
        if GROUPED:
            if OWN:
                part = tl.where(own, part + delta, part)
            _add_to_sum(part, top_ptr, sum_ptr, (dims + 1 + g) * samples_padded + i)
    if OWN:
        total = tl.where(own, total + delta, total)
    _add_to_sum(total, top_ptr, sum_ptr, dims * samples_padded + i)


@triton.jit
def _aggregate_forward_kernel(
    z_ptr, posterior_ptr, starts_ptr, top_ptr, sum_ptr, dims, groups, rows, samples_padded, padded, chunks,
    posteriors, dataset_size, offset, splits, GROUPED: tl.constexpr, WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Running sums of a tile of samples over one part of the posteriors: per dim, joint, per group; ``rows`` in all."""
    pid = tl.program_id(0)
    split = (pid % splits).to(tl.int64)
    first = pid // splits * BLOCK
    i = first + tl.arange(0, BLOCK).to(tl.int64)
    top_ptr += split * rows * samples_padded
    sum_ptr += split * rows * samples_padded
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    for row in range(0, rows):
        tl.store(top_ptr + row * samples_padded + i, tl.full([BLOCK], -float("inf"), dtype))
        tl.store(sum_ptr + row * samples_padded + i, tl.zeros([BLOCK], dtype))
    tl.debug_barrier()
    begin, end = split * chunks // splits, (split + 1) * chunks // splits
    own, other = log2_weights(posteriors, dataset_size, dtype, WEIGHTS)
    low, count = begin, begin - begin
    if WEIGHTS == 0:
        low, count = own_chunks(first + offset, first + offset + BLOCK, begin, end, CHUNK)
        for chunk in range(low, low + count):
            _forward_chunk(
                z_ptr, posterior_ptr, starts_ptr, top_ptr, sum_ptr, i, chunk, dims, groups, samples_padded, padded,
                own - other, offset, GROUPED, True, BLOCK, CHUNK,
            )  # fmt: skip
    for index in range(begin, end - count):
        # Past the chunks that hold a sample's own posterior: they are done.
        chunk = index + tl.where(index >= low, count, 0)
        _forward_chunk(
            z_ptr, posterior_ptr, starts_ptr, top_ptr, sum_ptr, i, chunk, dims, groups, samples_padded, padded,
            own - other, offset, GROUPED, False, BLOCK, CHUNK,
        )  # fmt: skip


@triton.jit
def _aggregate_finish_kernel(
    top_ptr, sum_ptr, order_ptr, joint_ptr, marginal_ptr, grouped_ptr, samples, dims, groups, rows, samples_padded,
    posteriors, dataset_size, splits, WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The parts' running sums become log-densities in nats."""
    tiles = samples_padded // BLOCK
    pid = tl.program_id(0)
    row = pid // tiles
    i = (pid % tiles) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    at = row * samples_padded + i
    top = tl.load(top_ptr + at)
    total = tl.load(sum_ptr + at)
    for _ in range(1, splits):
        at += rows * samples_padded
        more = tl.load(top_ptr + at)
        new = tl.maximum(top, more)
        shift = tl.where(new == -float("inf"), 0.0, new)
        total = total * tl.exp2(top - shift) + tl.load(sum_ptr + at) * tl.exp2(more - shift)
        top = new
    _, other = log2_weights(posteriors, dataset_size, top_ptr.dtype.element_ty, WEIGHTS)
    value = (top + tl.log2(total) + other) * LN2
    mask = i < samples
    if row < dims:
        tl.store(marginal_ptr + i * dims + source_dim(order_ptr, row), value, mask=mask)
    if row == dims:
        tl.store(joint_ptr + i, value, mask=mask)
    if row > dims:
        tl.store(grouped_ptr + i * groups + (row - dims - 1), value, mask=mask)
