"""MMD and HSIC: one pass over all pairs forward (and one backward for HSIC), without a matrix of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ._launch import check_device, launch, processors, register_limit
from ._layout import ceil_div, next_power_of_two
from ._pairwise_kernels import _hsic_backward_kernel, _hsic_forward_kernel, _mmd_kernel
from ._tuning import tuned

# Points are padded to whole tiles and chunks of any configuration.
PADDING = 128
_RBF = 0


@dataclass(frozen=True, slots=True)
class PairwiseConfig:
    """A program owns ``block`` points, one per thread, and passes over chunks of all; splits: into how many parts."""

    block: int = 128
    chunk: int = 16
    num_warps: int = 4
    splits: int = 1


def pairwise_config(
    operation: str, points: int, slices: int, dims: int, itemsize: int, device: torch.device
) -> PairwiseConfig:
    """Whole warps of points, and parts until some eight programs per processor run.

    A thread holds a chunk of distances, kernels and factors in registers; each part costs a pass over (dims, points)
    memory.
    """
    block = min(max(next_power_of_two(points), 32), 128)
    chunk = 64 // itemsize
    wanted = ceil_div(8 * processors(device), slices * ceil_div(points, block))
    splits = min(max(wanted, 1), ceil_div(points, chunk), 32)
    config = PairwiseConfig(block, chunk, max(block // 32, 1), splits)
    return tuned(operation, (points, slices, dims, itemsize), config, device)


def _check(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64) or y.dtype != x.dtype:
        raise TypeError(f"{name}: x and y must both be float32 or float64, got {x.dtype} and {y.dtype}")


def _transposed(*parts: torch.Tensor) -> torch.Tensor:
    """(D, points padded) of (N, D) tensors one behind the other."""
    points = sum(len(part) for part in parts)
    out = parts[0].new_zeros((parts[0].shape[1], ceil_div(points, PADDING) * PADDING))
    first = 0
    for part in parts:
        out[:, first : first + len(part)] = part.t()
        first += len(part)
    return out


def _widths(suffix: str, kernel: int, bandwidths: Sequence[float]) -> dict[str, tuple[float, ...]]:
    if kernel == _RBF:
        widths, factors = [-0.5 * math.log2(math.e) / (b * b) for b in bandwidths], [-1.0 / (b * b) for b in bandwidths]
    else:
        widths, factors = list(bandwidths), [-2.0 / b for b in bandwidths]
    return {f"WIDTHS{suffix}": tuple(widths), f"FACTORS{suffix}": tuple(factors)}


def _mmd(name, x, y, kernel, bandwidth, unbiased, save, slices, config):
    device = check_device(name, x, y)
    _check(name, x, y)
    first, second, coordinates = len(x), len(y), x.shape[1]
    points, dims = first + second, coordinates // slices
    config = config or pairwise_config(name, points, slices, dims, x.element_size(), device)
    z = _transposed(x, y)
    padded, tiles = z.shape[1], ceil_div(points, config.block)
    slopes = z.new_empty((config.splits, coordinates, padded)) if save else None
    # Points beyond the last tile have no program.
    sums = z.new_empty((config.splits, slices, padded))
    launch(
        _mmd_kernel, slices * tiles * config.splits, device, z, slopes, sums, points, first, second, dims, padded,
        tiles, ceil_div(points, config.chunk), slices, config.splits, RBF=kernel == _RBF, UNBIASED=unbiased,
        BLOCK=config.block, CHUNK=config.chunk, num_warps=config.num_warps,
        max_registers=register_limit(config.num_warps), **_widths("", kernel, bandwidth),
    )  # fmt: skip
    value = sums[:, :, :points].sum(dim=(0, 2), dtype=torch.float64)
    if not unbiased:
        # A point's pair with itself has k = 1 under every bandwidth.
        value = value + len(bandwidth) * (1.0 / first + 1.0 / second)
    found = [x.new_empty((0,)), x.new_empty((0,))]
    if save:
        slope = slopes.sum(dim=0)
        for i, part in enumerate((slope[:, :first], slope[:, first:points])):
            if save >> i & 1:
                found[i] = part.t().contiguous()
    return value.to(x.dtype), *found


def mmd_forward(
    x: torch.Tensor,
    y: torch.Tensor,
    kernel: int,
    bandwidth: Sequence[float],
    unbiased: bool,
    save: int,
    *,
    config: PairwiseConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared MMD and its gradients (value, slope_x, slope_y).

    Args:
        x, y: ``(N, D)`` and ``(M, D)``, both float32 or float64.
        kernel: rbf 0, imq 1, summed over the bandwidths.
        unbiased: leave out a point's pair with itself.
        save: bit 0 asks for slope_x, bit 1 for slope_y; the others are empty tensors of size (0,).
        config: launch configuration; a heuristic one by default.
    """
    value, slope_x, slope_y = _mmd("mmd", x, y, kernel, bandwidth, unbiased, save, 1, config)
    return value.reshape(()), slope_x, slope_y


def mmd_dimwise_forward(
    x: torch.Tensor,
    y: torch.Tensor,
    kernel: int,
    bandwidth: Sequence[float],
    unbiased: bool,
    save: int,
    *,
    config: PairwiseConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`mmd_forward` of every coordinate by itself: value is ``(D,)``."""
    return _mmd("mmd_dimwise", x, y, kernel, bandwidth, unbiased, save, x.shape[1], config)


def mmd_backward(
    grad: torch.Tensor, slope_x: torch.Tensor, slope_y: torch.Tensor, mask: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The upstream gradient, () or (D,), times the slopes the forward kept; bit i of ``mask`` asks for output i."""
    check_device("mmd_backward", grad)
    return tuple(grad * s if mask >> i & 1 else s.new_empty((0,)) for i, s in enumerate((slope_x, slope_y)))


def hsic_forward(
    x: torch.Tensor,
    y: torch.Tensor,
    kernel: int,
    bandwidth_x: Sequence[float],
    bandwidth_y: Sequence[float],
    unbiased: bool,
    *,
    config: PairwiseConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """HSIC and the (N,) centrings of both kernel matrices, which the backward needs.

    Args:
        x, y: ``(N, D)`` and ``(N, E)``, both float32 or float64.
        kernel: of both, rbf 0 or imq 1; unbiased: leave out a point's pair with itself.
    """
    device = check_device("hsic", x, y)
    _check("hsic", x, y)
    n = len(x)
    config = config or pairwise_config("hsic_forward", n, 1, x.shape[1] + y.shape[1], x.element_size(), device)
    points_x, points_y = _transposed(x), _transposed(y)
    padded = points_x.shape[1]
    sums = x.new_empty((config.splits, 3, padded))
    launch(
        _hsic_forward_kernel, ceil_div(n, config.block) * config.splits, device, points_x, points_y, sums, n,
        x.shape[1], y.shape[1], padded, ceil_div(n, config.chunk), config.splits, RBF=kernel == _RBF,
        BLOCK=config.block, CHUNK=config.chunk, num_warps=config.num_warps,
        max_registers=register_limit(config.num_warps), **_widths("_X", kernel, bandwidth_x),
        **_widths("_Y", kernel, bandwidth_y),
    )  # fmt: skip
    # N float64 numbers: the differences below are of order 1/N of their terms.
    own_x, own_y = (0.0, 0.0) if unbiased else (float(len(bandwidth_x)), float(len(bandwidth_y)))
    rows_x, rows_y, products = sums[:, :, :n].sum(dim=0, dtype=torch.float64)
    rows_x, rows_y, product = rows_x + own_x, rows_y + own_y, products.sum() + n * own_x * own_y
    total_x, total_y = rows_x.sum(), rows_y.sum()
    pairs, others = (n * (n - 1), n - 2) if unbiased else (n * n, n)
    covariance = ((rows_x - total_x / n) * (rows_y - total_y / n)).sum()
    value = (product - total_x * (total_y / pairs) - covariance * (2.0 / others)) * _constant(n, unbiased)
    divisor = 2.0 * ((n - 1) * (n - 2) if unbiased else n * n)
    centres = [rows / others - total / divisor for rows, total in ((rows_x, total_x), (rows_y, total_y))]
    return value.to(x.dtype), *(centre.to(x.dtype) for centre in centres)


def _constant(n: int, unbiased: bool) -> float:
    return 1.0 / (n * (n - 3) if unbiased else n * n)


def hsic_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    centre_x: torch.Tensor,
    centre_y: torch.Tensor,
    kernel: int,
    bandwidth_x: Sequence[float],
    bandwidth_y: Sequence[float],
    unbiased: bool,
    mask: int,
    *,
    config: PairwiseConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients (dx, dy) of :func:`hsic_forward`; bit i of ``mask`` asks for output i, the other has size (0,)."""
    device = check_device("hsic_backward", grad, x, y, centre_x, centre_y)
    _check("hsic_backward", x, y)
    n = len(x)
    config = config or pairwise_config("hsic_backward", n, 1, x.shape[1] + y.shape[1], x.element_size(), device)
    points_x, points_y = _transposed(x), _transposed(y)
    slopes = [
        points.new_empty((config.splits, *points.shape)) if mask >> i & 1 else None
        for i, points in enumerate((points_x, points_y))
    ]
    launch(
        _hsic_backward_kernel, ceil_div(n, config.block) * config.splits, device, points_x, points_y,
        centre_x.contiguous(), centre_y.contiguous(), *slopes, n, x.shape[1], y.shape[1], points_x.shape[1],
        ceil_div(n, config.chunk), config.splits, RBF=kernel == _RBF, BLOCK=config.block, CHUNK=config.chunk,
        num_warps=config.num_warps, max_registers=register_limit(config.num_warps),
        **_widths("_X", kernel, bandwidth_x), **_widths("_Y", kernel, bandwidth_y),
    )  # fmt: skip
    scale = grad * (2.0 * _constant(n, unbiased))
    return tuple(
        x.new_empty((0,)) if s is None else (scale * s.sum(dim=0)[:, :n].t()).contiguous() for s in slopes
    )
