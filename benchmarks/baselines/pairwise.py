"""MMD and HSIC as existing code writes them: with the matrix of kernels, from differences or from products."""

import torch


def squares_from_differences(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The (N, M, D) tensor of differences, as InfoVAE implementations tile it."""
    return (x.unsqueeze(1) - y.unsqueeze(0)).pow(2).sum(dim=2)


def squares_from_products(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``|x|^2 + |y|^2 - 2 xy``, as WAE does it: fast, but float32 loses the digits of close points."""
    return x.pow(2).sum(dim=1, keepdim=True) + y.pow(2).sum(dim=1) - 2 * x @ y.t()


def mmd_rbf(x: torch.Tensor, y: torch.Tensor, bandwidth: float, squares) -> torch.Tensor:
    """Unbiased squared MMD."""
    xx, yy, xy = (torch.exp(squares(a, b) / (-2 * bandwidth**2)) for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within = (xx.sum() - xx.diagonal().sum()) / (n * (n - 1)) + (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return within - 2 * xy.mean()


def mmd_imq_dimwise(x: torch.Tensor, y: torch.Tensor, widths: tuple[float, ...]) -> torch.Tensor:
    """Unbiased squared MMD of each coordinate, summed over the widths."""
    n, m = len(x), len(y)
    xx, yy, xy = ((a.unsqueeze(1) - b.unsqueeze(0)).pow(2) for a, b in ((x, x), (y, y), (x, y)))
    total = 0.0
    for c in widths:
        k, q, r = (c / (c + s) for s in (xx, yy, xy))
        # A point's kernel with itself is 1.
        total = total + (k.sum((0, 1)) - n) / (n * (n - 1)) + (q.sum((0, 1)) - m) / (m * (m - 1)) - 2 * r.mean((0, 1))
    return total


def hsic_rbf(x: torch.Tensor, y: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """tr(K H L H) / N^2 with both matrices centred by products."""
    n = len(x)
    k, m = (torch.exp(squares_from_products(t, t) / (-2 * bandwidth**2)) for t in (x, y))
    h = torch.eye(n, device=x.device) - 1.0 / n
    return torch.trace(k @ h @ m @ h) / (n * n)
