"""mmd, mmd_dimwise and hsic against the matrices of kernels that existing code builds, eager and compiled.

"cdist" takes the squares from torch.cdist, "matrix products" from the norms and x @ y.T. torch.compile is
compared at 128 points; STRUCFAST_FULL=1 has it at more.
"""

import pytest
import torch

import strucfast as sf
from benchmarks import _peers, _precompile, _timing
from benchmarks._passes import bytes_of, leaves, passes, per_direction
from benchmarks.baselines import pairwise, pythae_losses

WIDTHS = (0.2, 0.4, 1.0, 2.0, 4.0, 10.0)


def points(n, d):
    torch.manual_seed(0)
    return leaves(torch.randn(n, d), torch.randn(n, d))


@pytest.mark.compiles
@pytest.mark.parametrize(
    "n,d,direction",
    [(128, 10, "forward"), (128, 10, "both"), (1024, 10, "forward"), (1024, 10, "both"), (1024, 64, "both")],
)
def test_mmd(compare, n, d, direction):
    torch.compiler.reset()
    x, y = points(n, d)
    # That of pythae's WAE.
    bandwidth = d**0.5

    def eager(squares=pairwise.squares_from_differences):
        return pairwise.mmd_rbf(x, y, bandwidth, squares)

    providers = {
        "strucfast": lambda: sf.ops.mmd(x, y, bandwidth=bandwidth),
        "matrix products": lambda: eager(pairwise.squares_from_products),
        "cdist": lambda: eager(lambda a, b: torch.cdist(a, b).square()),
    }
    # The tensors of differences of 1024 points in 64 dims are 256 MB each.
    if d < 64:
        providers["eager"] = eager
        if not _precompile.is_child() and _peers.find("pythae.models"):
            theirs = pythae_losses.wae_mmd(d, kernel="rbf")
            providers["pythae"] = lambda: theirs(x, y)
    if (n == 128 or (_timing.full() and d < 64)) and direction == "both":
        providers["torch.compile"] = torch.compile(eager, dynamic=False)
    for call in providers.values():
        torch.testing.assert_close(call(), providers["strucfast"](), rtol=0, atol=1e-5)
    timed = {name: passes(call, [x, y], direction) for name, call in providers.items()}
    # Every pair counts once, within x, within y and between them.
    pairs = n * (n - 1) + n * n
    rates = {
        "moved": per_direction(direction, bytes_of(x, y), 2 * bytes_of(x, y)),
        "exps": per_direction(direction, pairs, pairs),
    }
    compare("mmd", f"rbf, N = M = {n}, D {d}", direction, x.dtype, "contiguous", timed, seconds=0.8, **rates)


@pytest.mark.compiles
@pytest.mark.parametrize("n", (128, 512))
def test_mmd_dimwise(compare, n):
    torch.compiler.reset()
    x, y = points(n, 10)

    def eager():
        return pairwise.mmd_imq_dimwise(x, y, WIDTHS)

    torch.testing.assert_close(sf.ops.mmd_dimwise(x, y), eager(), rtol=0, atol=1e-4)
    providers = {"strucfast": lambda: sf.ops.mmd_dimwise(x, y), "eager": eager}
    if n == 128 or _timing.full():
        providers["torch.compile"] = torch.compile(eager, dynamic=False)
    timed = {name: passes(call, [x, y], "both") for name, call in providers.items()}
    moved = per_direction("both", bytes_of(x, y), 2 * bytes_of(x, y))
    compare("mmd_dimwise", f"6 imq, N = M = {n}, D 10", "both", x.dtype, "contiguous", timed, seconds=0.8, moved=moved)


@pytest.mark.compiles
@pytest.mark.parametrize("n", (128, 1024))
def test_hsic(compare, n):
    torch.compiler.reset()
    x, y = points(n, 10)

    def eager():
        return pairwise.hsic_rbf(x, y, 2.0)

    providers = {"strucfast": lambda: sf.ops.hsic(x, y, bandwidth_x=2.0, bandwidth_y=2.0), "eager": eager}
    if n == 128 or _timing.full():
        providers["torch.compile"] = torch.compile(eager, dynamic=False)
    torch.testing.assert_close(providers["strucfast"](), eager(), rtol=0, atol=1e-5)
    timed = {name: passes(call, [x, y], "both") for name, call in providers.items()}
    moved = per_direction("both", bytes_of(x, y), 2 * bytes_of(x, y))
    # Each pair of each of the two sets, in the forward and again in the backward.
    rates = {"moved": moved, "exps": per_direction("both", n * (n - 1), n * (n - 1))}
    compare("hsic", f"rbf, N {n}, D = E = 10", "both", x.dtype, "contiguous", timed, seconds=0.8, **rates)


def test_memory_of_many_points():
    """Forward and backward of 2 x 8192 points in 20 dims; one matrix of their kernels is 268 MB."""
    x, y = points(8192, 20)
    megabytes = _timing.allocated_bytes(lambda: torch.autograd.grad(sf.ops.mmd(x, y, bandwidth=3.0), (x, y))) / 1e6
    print(f"{megabytes:.0f} MB")
    assert megabytes < 50
