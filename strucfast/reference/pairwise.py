"""Kernel two-sample and independence statistics over pairs of points."""

from collections.abc import Sequence

import torch

from .modulate import compute_dtype

KERNELS = ("rbf", "imq")


def _bandwidths(bandwidth: float | Sequence[float]) -> tuple[float, ...]:
    return (float(bandwidth),) if isinstance(bandwidth, (int, float)) else tuple(float(b) for b in bandwidth)


def _gram(x: torch.Tensor, y: torch.Tensor, kernel: str, bandwidth: float | Sequence[float]) -> torch.Tensor:
    """(N,M) sum over bandwidths of ``exp(-|x-y|^2 / 2 b^2)`` (rbf) or ``b / (b + |x-y|^2)`` (imq)."""
    # Differences, not the expanded square: it would lose the digits of close points.
    square = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(dim=2)
    terms = [
        torch.exp(-square / (2 * b * b)) if kernel == "rbf" else b / (b + square) for b in _bandwidths(bandwidth)
    ]
    return torch.stack(terms).sum(dim=0)


def _without_diagonal(gram: torch.Tensor) -> torch.Tensor:
    return gram - torch.diag(gram.diagonal())


def mmd(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    kernel: str = "rbf",
    bandwidth: float | Sequence[float] = 1.0,
    unbiased: bool = True,
) -> torch.Tensor:
    """Plain PyTorch truth of :func:`strucfast.ops.mmd`, with the same arguments."""
    dtype = compute_dtype(x)
    x, y = x.to(dtype), y.to(dtype)
    within_x, within_y, across = (_gram(a, b, kernel, bandwidth) for a, b in ((x, x), (y, y), (x, y)))
    if not unbiased:
        return within_x.mean() + within_y.mean() - 2 * across.mean()
    pairs_x, pairs_y = (n * (n - 1) for n in (x.shape[0], y.shape[0]))
    return (
        _without_diagonal(within_x).sum() / pairs_x + _without_diagonal(within_y).sum() / pairs_y - 2 * across.mean()
    )


def mmd_dimwise(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    kernel: str = "imq",
    bandwidth: float | Sequence[float] = (0.2, 0.4, 1.0, 2.0, 4.0, 10.0),
    unbiased: bool = True,
) -> torch.Tensor:
    """Plain PyTorch truth of :func:`strucfast.ops.mmd_dimwise`, with the same arguments."""
    columns = [
        mmd(x[:, d : d + 1], y[:, d : d + 1], kernel=kernel, bandwidth=bandwidth, unbiased=unbiased)
        for d in range(x.shape[1])
    ]
    return torch.stack(columns)


def hsic(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    kernel: str = "rbf",
    bandwidth_x: float | Sequence[float] = 1.0,
    bandwidth_y: float | Sequence[float] = 1.0,
    unbiased: bool = False,
) -> torch.Tensor:
    """Plain PyTorch truth of :func:`strucfast.ops.hsic`, with the same arguments."""
    dtype = compute_dtype(x)
    k = _gram(x.to(dtype), x.to(dtype), kernel, bandwidth_x)
    m = _gram(y.to(dtype), y.to(dtype), kernel, bandwidth_y)
    n = x.shape[0]
    if not unbiased:
        # Centring one of the two matrices is enough, and exact where k or m is constant.
        centred = k - k.mean(dim=0) - k.mean(dim=1, keepdim=True) + k.mean()
        return (centred * m).sum() / (n * n)
    k, m = _without_diagonal(k), _without_diagonal(m)
    crossed = (k.sum(dim=0) * m.sum(dim=0)).sum()
    return ((k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * crossed / (n - 2)) / (n * (n - 3))
