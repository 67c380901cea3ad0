"""The ISA log-density: subspaces one after the other over a tile of rows, and a backward that reads z once.

What depends on the parameters alone (log-gammas, digammas) is float64, in kernels of one program.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import triton
import triton.language as tl

from ._launch import check_device, launch, register_limit
from ._layout import ceil_div, next_power_of_two
from ._math import load
from ._reduce import column_sums
from ._tuning import tuned

LN2 = tl.constexpr(0.6931471805599453)
HALF_LOG_TAU_LESS_HALF = tl.constexpr(0.4189385332046727)

# Kernels unroll over runs of equal sizes; more of them go to further launches.
_RUNS = 8
# Partial sums that the last kernel adds up by itself.
_ROWS = 64


@dataclass(frozen=True, slots=True)
class LpNestedConfig:
    """Rows of one program's tile, and its warps."""

    block_n: int
    num_warps: int = 4


@triton.jit
def _bits_of(value):
    if value.dtype == tl.float64:
        return value.to(tl.int64, bitcast=True)
    else:
        return value.to(tl.int32, bitcast=True)


@triton.jit
def _power_of_two(n):
    """2^n of integers within the exponents of normal numbers."""
    if n.dtype == tl.int64:
        return ((n + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _norm(z, zero, p):
    """Of rows of z: e, log2(v) - e, log2(|z_j|) - e, sum w_j log2(w_j), and where all coordinates are 0.

    2^e is the size of the largest coordinate, from its bits: logarithms of what is left are small, and so is their
    rounding once they are multiplied by an exponent.
    """
    wide: tl.constexpr = z.dtype == tl.float64
    MANTISSA: tl.constexpr = 52 if wide else 23
    BIAS: tl.constexpr = 1023 if wide else 127
    size = tl.where(zero, 0.0, tl.abs(z))
    largest = tl.max(_bits_of(size), axis=1)
    empty = largest == 0
    e = tl.minimum(tl.maximum(largest >> MANTISSA, 1), 2 * BIAS - 1) - BIAS
    unit = _power_of_two(-e)
    exponent = e.to(z.dtype)
    # A coordinate so much smaller that it would leave the normal numbers keeps its own unit.
    near = size * unit[:, None]
    far = near < 1e-30
    logs = tl.log2(tl.where(zero, 1.0, tl.where(far, size, near))) - tl.where(far, exponent[:, None], 0.0)
    top = tl.where(empty, 0.0, tl.max(tl.where(zero, -3.0e4, logs), axis=1))
    ratio = logs - top[:, None]
    terms = tl.where(zero, 0.0, tl.exp2(p * ratio))
    total = tl.where(empty, 1.0, tl.sum(terms, axis=1))
    log_total = tl.log2(total)
    moment = tl.sum(terms * tl.where(zero, 0.0, ratio), axis=1) / total
    # Infinity and NaN are no numbers to take exponents of; they come back as themselves.
    infinite = largest >= ((2 * BIAS + 1) << MANTISSA)
    value = largest.to(z.dtype, bitcast=True)
    return exponent, top + log_total / p, logs, log_total - p * moment, empty, infinite, value


@triton.jit
def _energy(exponent, log_norm, empty, infinite, value, root, scale):
    """v^p0 / s: p0 e exactly, in a part of p0 with few bits and the rest, and its whole part by exponents."""
    if root.dtype == tl.float64:
        high = (_bits_of(root) & -8192).to(tl.float64, bitcast=True)
        LIMIT: tl.constexpr = 2040
    else:
        high = (_bits_of(root) & -512).to(tl.float32, bitcast=True)
        LIMIT: tl.constexpr = 250
    large = high * exponent
    whole = tl.minimum(tl.maximum(tl.floor(large + 0.5), -1.0e6), 1.0e6)
    power = tl.exp2((large - whole) + ((root - high) * exponent + root * log_norm)) / scale
    n = tl.minimum(tl.maximum(whole.to(_bits_of(root).dtype), -LIMIT), LIMIT)
    power = power * _power_of_two(n >> 1) * _power_of_two(n - (n >> 1))
    return tl.where(infinite, value, tl.where(empty, 0.0, power))


@triton.jit
def _subspace(z_ptr, row, in_rows, k, FIRST: tl.constexpr, OFFSET: tl.constexpr, SIZE: tl.constexpr,
              BLOCK_J: tl.constexpr, DIMS: tl.constexpr):  # fmt: skip
    """Where subspace k of a run lies, the mask, z, and where z counts as 0 (subnormal numbers do)."""
    column = OFFSET + (k - FIRST) * SIZE + tl.arange(0, BLOCK_J)
    place = row[:, None] * DIMS + column[None, :]
    if SIZE == BLOCK_J:
        mask = in_rows[:, None] & (column >= 0)[None, :]
    else:
        mask = in_rows[:, None] & (tl.arange(0, BLOCK_J) < SIZE)[None, :]
    z = load(z_ptr + place, mask)
    SMALLEST: tl.constexpr = 2.2250738585072014e-308 if z.dtype == tl.float64 else 1.1754943508222875e-38
    return place, mask, z, tl.abs(z) < SMALLEST


@triton.jit
def _lp_nested_forward_kernel(
    z_ptr,
    root_ptr,
    p_ptr,
    scale_ptr,
    constant_ptr,
    log_prob_ptr,
    rows,
    RUNS: tl.constexpr,
    DIMS: tl.constexpr,
    SHARED_SCALE: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = row < rows
    root = tl.load(root_ptr)
    energy = tl.zeros([BLOCK_N], z_ptr.dtype.element_ty)
    for run in tl.static_range(len(RUNS)):
        for k in range(RUNS[run][0], RUNS[run][0] + RUNS[run][1]):
            _place, _mask, z, zero = _subspace(
                z_ptr, row, in_rows, k, RUNS[run][0], RUNS[run][3], RUNS[run][2], RUNS[run][4], DIMS
            )
            exponent, log_norm, _logs, _entropy, empty, infinite, value = _norm(z, zero, tl.load(p_ptr + k))
            scale = tl.load(scale_ptr if SHARED_SCALE else scale_ptr + k)
            energy += _energy(exponent, log_norm, empty, infinite, value, root, scale)
    if FIRST:
        before = tl.load(constant_ptr)
    else:
        before = tl.load(log_prob_ptr + row, mask=in_rows, other=0.0)
    tl.store(log_prob_ptr + row, before - energy, mask=in_rows)


@triton.jit
def _lp_nested_backward_kernel(
    grad_ptr,
    z_ptr,
    root_ptr,
    p_ptr,
    scale_ptr,
    dz_ptr,
    partial_ptr,
    rows,
    grad_stride,
    subspaces,
    RUNS: tl.constexpr,
    DIMS: tl.constexpr,
    SHARED_SCALE: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # partial_ptr: per program [g, g sum_k E_k log v_k, (g E_k H_k), (g E_k)]; an output not asked for is None.
    pid = tl.program_id(0).to(tl.int64)
    row = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = row < rows
    root = tl.load(root_ptr)
    grad = load(grad_ptr + row * grad_stride, in_rows)
    log_sum = tl.zeros([BLOCK_N], z_ptr.dtype.element_ty)
    sums = pid * (2 + 2 * subspaces)
    LARGEST: tl.constexpr = 1.7e308 if z_ptr.dtype.element_ty == tl.float64 else 3.4e38
    for run in tl.static_range(len(RUNS)):
        for k in range(RUNS[run][0], RUNS[run][0] + RUNS[run][1]):
            place, mask, z, zero = _subspace(
                z_ptr, row, in_rows, k, RUNS[run][0], RUNS[run][3], RUNS[run][2], RUNS[run][4], DIMS
            )
            p = tl.load(p_ptr + k)
            scale = tl.load(scale_ptr if SHARED_SCALE else scale_ptr + k)
            exponent, log_norm, logs, entropy, empty, infinite, value = _norm(z, zero, p)
            if dz_ptr is not None:
                # Not from the energy, which may overflow where this does not.
                common = (root - 1.0) * exponent + (root - 1.0) * log_norm
                slope = tl.exp2(common[:, None] + (p - 1.0) * (logs - log_norm[:, None]))
                factor = tl.where(infinite, value - value, -(root / scale) * grad)
                dz = tl.where(zero, 0.0, tl.where(z < 0.0, -slope, slope) * factor[:, None])
                tl.store(dz_ptr + place, dz, mask=mask)
            if partial_ptr is not None:
                energy = _energy(exponent, log_norm, empty, infinite, value, root, scale)
                # An infinite energy would make NaN of an upstream gradient of 0.
                weighted = grad * tl.where(energy > LARGEST, LARGEST, energy)
                log_sum += weighted * (exponent + log_norm)
                tl.store(partial_ptr + sums + 2 + k, tl.sum(weighted * entropy, axis=0) * LN2)
                tl.store(partial_ptr + sums + 2 + subspaces + k, tl.sum(weighted, axis=0))
    if partial_ptr is not None:
        log_total = tl.sum(log_sum, axis=0) * LN2
        if FIRST:
            tl.store(partial_ptr + sums, tl.sum(grad, axis=0))
        else:
            log_total += tl.load(partial_ptr + sums + 1)
        tl.store(partial_ptr + sums + 1, log_total)


@triton.jit
def _log_gamma(x):
    """lgamma of float64 x >= 1: recurrence up to 7, then Stirling's series; the larger x, the more digits cancel."""
    product = tl.full(x.shape, 1.0, tl.float64)
    for _ in tl.static_range(6):
        small = x < 7.0
        product = tl.where(small, product * x, product)
        x = tl.where(small, x + 1.0, x)
    t = 1.0 / (x * x)
    series = 1.0 / 156.0 - t * (3617.0 / 122400.0 - t * (43867.0 / 244188.0 - t * (174611.0 / 125400.0)))
    series = 1.0 / 1188.0 - t * (691.0 / 360360.0 - t * series)
    series = 1.0 / 12.0 - t * (1.0 / 360.0 - t * (1.0 / 1260.0 - t * (1.0 / 1680.0 - t * series)))
    return (x - 0.5) * (tl.log(x) - 1.0) + (series / x + HALF_LOG_TAU_LESS_HALF) - tl.log(product)


@triton.jit
def _digamma(x):
    """Derivative of :func:`_log_gamma`."""
    below = tl.full(x.shape, 0.0, tl.float64)
    for _ in tl.static_range(11):
        small = x < 12.0
        below += tl.where(small, 1.0 / x, 0.0)
        x = tl.where(small, x + 1.0, x)
    t = 1.0 / (x * x)
    series = 1.0 / 240.0 - t * (1.0 / 132.0 - t * (691.0 / 32760.0))
    series = t * (1.0 / 12.0 - t * (1.0 / 120.0 - t * (1.0 / 252.0 - t * series)))
    return tl.log(x) - 0.5 / x - series - below


@triton.jit
def _parameters(p_ptr, scale_ptr, k, RUNS: tl.constexpr, SHARED_SCALE: tl.constexpr):
    """(n_k, p_k, s_k) in float64 of the subspaces k, harmless ones beyond the last."""
    n = tl.zeros(k.shape, tl.float64)
    for run in tl.static_range(len(RUNS)):
        inside = (k >= RUNS[run][0]) & (k < RUNS[run][0] + RUNS[run][1])
        n += tl.where(inside, 1.0, 0.0).to(tl.float64) * RUNS[run][2]
    known = n > 0.0
    p = tl.load(p_ptr + k, mask=known, other=1.0).to(tl.float64)
    scale = tl.load(scale_ptr + (k * 0 if SHARED_SCALE else k), mask=known, other=1.0).to(tl.float64)
    return n, p, scale


@triton.jit
def _lp_nested_normaliser_float64_kernel(
    root_ptr,
    p_ptr,
    scale_ptr,
    constant_ptr,
    RUNS: tl.constexpr,
    SUBSPACES: tl.constexpr,
    SHARED_SCALE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    root = tl.load(root_ptr).to(tl.float64)
    total = tl.zeros([BLOCK_K], tl.float64)
    for begin in range(0, SUBSPACES, BLOCK_K):
        n, p, scale = _parameters(p_ptr, scale_ptr, begin + tl.arange(0, BLOCK_K), RUNS, SHARED_SCALE)
        # A single coordinate does not depend on its exponent, and log-gammas that cancel leave their rounding.
        of_p = tl.where(n > 1.0, _log_gamma(1.0 + n / p) - n * _log_gamma(1.0 + 1.0 / p), 0.0)
        total += of_p - _log_gamma(1.0 + n / root) - n * LN2 - n / root * tl.log(scale)
    tl.store(constant_ptr, tl.sum(total, axis=0).to(constant_ptr.dtype.element_ty))


@triton.jit
def _lp_nested_gradients_float64_kernel(
    partial_ptr,
    root_ptr,
    p_ptr,
    scale_ptr,
    droot_ptr,
    dp_ptr,
    dscale_ptr,
    rows,
    RUNS: tl.constexpr,
    SUBSPACES: tl.constexpr,
    SHARED_SCALE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    COLUMNS: tl.constexpr = 2 + 2 * SUBSPACES
    row = tl.arange(0, BLOCK_R)
    in_rows = row < rows
    upstream = tl.sum(tl.load(partial_ptr + row * COLUMNS, mask=in_rows, other=0.0).to(tl.float64), axis=0)
    log_sum = tl.sum(tl.load(partial_ptr + row * COLUMNS + 1, mask=in_rows, other=0.0).to(tl.float64), axis=0)
    root = tl.load(root_ptr).to(tl.float64)
    of_root = tl.zeros([BLOCK_K], tl.float64)
    of_scale = tl.zeros([BLOCK_K], tl.float64)
    for begin in range(0, SUBSPACES, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        n, p, scale = _parameters(p_ptr, scale_ptr, k, RUNS, SHARED_SCALE)
        known = k < SUBSPACES
        place = partial_ptr + row[:, None] * COLUMNS + 2 + k[None, :]
        mask = in_rows[:, None] & known[None, :]
        entropy = tl.sum(tl.load(place, mask=mask, other=0.0).to(tl.float64), axis=0)
        energy = tl.sum(tl.load(place + SUBSPACES, mask=mask, other=0.0).to(tl.float64), axis=0)
        of_root += n * (_digamma(1.0 + n / root) + tl.log(scale))
        if dp_ptr is not None:
            constant = n * (_digamma(1.0 + 1.0 / p) - _digamma(1.0 + n / p)) * upstream
            dp = tl.where(n > 1.0, (constant + root * entropy) / (p * p), 0.0)
            tl.store(dp_ptr + k, dp.to(dp_ptr.dtype.element_ty), mask=known)
        if dscale_ptr is not None:
            dscale = (energy - n / root * upstream) / scale
            if SHARED_SCALE:
                of_scale += dscale
            else:
                tl.store(dscale_ptr + k, dscale.to(dscale_ptr.dtype.element_ty), mask=known)
    if droot_ptr is not None:
        droot = tl.sum(of_root, axis=0) / (root * root) * upstream - log_sum
        tl.store(droot_ptr, droot.to(droot_ptr.dtype.element_ty))
    if dscale_ptr is not None and SHARED_SCALE:
        tl.store(dscale_ptr, tl.sum(of_scale, axis=0).to(dscale_ptr.dtype.element_ty))


def _runs(sizes: Sequence[int]) -> tuple[tuple[int, int, int, int, int], ...]:
    """Runs of equal sizes: (first subspace, how many, size, first column, columns of a tile)."""
    runs, first, column = [], 0, 0
    for size, group in groupby(sizes):
        count = len(list(group))
        runs.append((first, count, size, column, next_power_of_two(size)))
        first, column = first + count, column + count * size
    return tuple(runs)


def lp_nested_config(operation: str, sizes: Sequence[int], itemsize: int, device: torch.device) -> LpNestedConfig:
    """Tiles of 4 KiB of z per subspace: a thread has a few rows of a small one to itself, whole."""
    width = next_power_of_two(max(sizes))
    block_n = min(max(4096 // itemsize // width, 1), 256)
    # At most 32 elements a thread, so that long subspaces do not run out of registers.
    num_warps = min(max(block_n * width // 1024, 4), 16)
    return tuned(operation, (*sizes, itemsize), LpNestedConfig(block_n, num_warps), device)


def _check(name: str, z: torch.Tensor, sizes: Sequence[int], *parameters: torch.Tensor) -> torch.device:
    device = check_device(name, z, *parameters)
    if z.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: z must be float32 or float64, got {z.dtype}")
    if sum(sizes) != z.shape[1] or min(sizes) < 1:
        raise ValueError(f"{name}: sizes must be positive and sum to {z.shape[1]}, got {tuple(sizes)}")
    return device


def lp_nested_log_prob_forward(
    z: torch.Tensor,
    sizes: Sequence[int],
    p0: torch.Tensor,
    p: torch.Tensor,
    scale: torch.Tensor,
    *,
    config: LpNestedConfig | None = None,
) -> torch.Tensor:
    """Log-densities (N,) in z's dtype.

    Args:
        z: ``(N, n)``, float32 or float64.
        sizes: of the K subspaces.
        p0, p, scale: ``()``, ``(K,)`` and ``()`` or ``(K,)``, float32 or float64.
        config: launch configuration; a heuristic one by default.
    """
    device = _check("lp_nested_log_prob", z, sizes, p0, p, scale)
    log_prob = z.new_empty(z.shape[0])
    if z.shape[0] == 0:
        return log_prob
    z, p, scale = z.contiguous(), p.contiguous(), scale.contiguous()
    runs, shared = _runs(sizes), scale.dim() == 0
    constant = z.new_empty(1)
    launch(
        _lp_nested_normaliser_float64_kernel,
        1,
        device,
        p0,
        p,
        scale,
        constant,
        RUNS=runs,
        SUBSPACES=len(sizes),
        SHARED_SCALE=shared,
        BLOCK_K=min(next_power_of_two(len(sizes)), 128),
        num_warps=1,
    )
    config = config or lp_nested_config("lp_nested_log_prob_forward", sizes, z.element_size(), device)
    parameters = [t.to(z.dtype) for t in (p0, p, scale)]
    for begin in range(0, len(runs), _RUNS):
        launch(
            _lp_nested_forward_kernel,
            ceil_div(z.shape[0], config.block_n),
            device,
            z,
            *parameters,
            constant,
            log_prob,
            z.shape[0],
            RUNS=runs[begin : begin + _RUNS],
            DIMS=z.shape[1],
            SHARED_SCALE=shared,
            FIRST=begin == 0,
            BLOCK_N=config.block_n,
            num_warps=config.num_warps,
        )
    return log_prob


def lp_nested_log_prob_backward(
    grad: torch.Tensor,
    z: torch.Tensor,
    sizes: Sequence[int],
    p0: torch.Tensor,
    p: torch.Tensor,
    scale: torch.Tensor,
    mask: int,
    *,
    config: LpNestedConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients (dz, dp0, dp, dscale) of :func:`lp_nested_log_prob_forward`.

    Args:
        grad: gradient of the log-densities, ``(N,)``.
        z, sizes, p0, p, scale: the forward's inputs.
        mask: bit i asks for output i; the others are empty tensors of size (0,).
        config: launch configuration; a heuristic one by default.
    """
    name = "lp_nested_log_prob_backward"
    device = _check(name, z, sizes, grad, p0, p, scale)
    outputs = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (z, p0, p, scale)]
    outputs = [o if mask >> i & 1 else o.new_empty(0) for i, o in enumerate(outputs)]
    if z.shape[0] == 0:
        return tuple(o.zero_() for o in outputs)
    z, p, scale = z.contiguous(), p.contiguous(), scale.contiguous()
    config = config or lp_nested_config(name, sizes, z.element_size(), device)
    runs, shared = _runs(sizes), scale.dim() == 0
    programs = ceil_div(z.shape[0], config.block_n)
    if programs > _ROWS:
        # Whole groups, so that the first sums see groups of rows side by side; programs beyond the rows write 0.
        programs = ceil_div(programs, _ROWS) * _ROWS
    columns = 2 + 2 * len(sizes)
    partial = z.new_empty((programs, columns)) if mask & 14 else None
    parameters = [t.to(z.dtype) for t in (p0, p, scale)]
    for begin in range(0, len(runs), _RUNS):
        launch(
            _lp_nested_backward_kernel,
            programs,
            device,
            grad,
            z,
            *parameters,
            outputs[0] if mask & 1 else None,
            partial,
            z.shape[0],
            grad.stride(0),
            len(sizes),
            RUNS=runs[begin : begin + _RUNS],
            DIMS=z.shape[1],
            SHARED_SCALE=shared,
            FIRST=begin == 0,
            BLOCK_N=config.block_n,
            num_warps=config.num_warps,
        )
    if partial is None:
        return tuple(outputs)
    rows = programs
    if programs > _ROWS:
        rows = _ROWS
        sums = z.new_empty((rows, columns))
        column_sums(partial, sums, None, sums, programs // rows, rows * columns)
        partial = sums
    launch(
        _lp_nested_gradients_float64_kernel,
        1,
        device,
        partial,
        p0,
        p,
        scale,
        *(o if mask >> i & 1 else None for i, o in enumerate(outputs[1:], start=1)),
        rows,
        RUNS=runs,
        SUBSPACES=len(sizes),
        SHARED_SCALE=shared,
        BLOCK_R=next_power_of_two(rows),
        BLOCK_K=16,
        num_warps=4,
        # One program: nothing is lost by giving it all the registers it wants.
        max_registers=register_limit(4),
    )
    return tuple(outputs)
