"""lp_nested_log_prob against the ISA prior's log-density as published code writes it, eager and compiled.

The ISA-VAE paper's dSprites prior: five subspaces of four, gradients of z, both exponents and the scale. torch.compile,
slower than eager from thousands of points on, is compared at 2048 only; STRUCFAST_FULL=1 has it everywhere.
"""

import pytest
import torch

import strucfast as sf
from benchmarks import _timing
from benchmarks._passes import DIRECTIONS, agree, bytes_of, leaves, passes, per_direction
from benchmarks.baselines.lp_nested import isa_log_prob

SIZES = (4, 4, 4, 4, 4)
POINTS = (2048, 65536, 1048576)


@pytest.mark.compiles
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("points", POINTS)
def test_lp_nested(compare, points, direction):
    torch.manual_seed(0)
    torch.compiler.reset()
    p = torch.full((len(SIZES),), 2.2)
    inputs = leaves(torch.randn(points, sum(SIZES)), torch.tensor(2.1), p, torch.tensor(2.09312))
    functions = {"strucfast": sf.ops.lp_nested_log_prob, "eager": isa_log_prob}
    if points == POINTS[0] or _timing.full():
        functions["torch.compile"] = torch.compile(isa_log_prob, dynamic=False)

    z, p0, p, scale = inputs
    calls = {name: lambda f=f: f(z, SIZES, p0, p, scale) for name, f in functions.items()}
    row = 4 * points
    # Backward: z and the upstream gradient in, the gradient of z out; the parameters are a few numbers.
    moved = per_direction(direction, bytes_of(z) + row, 2 * bytes_of(z) + row)
    # A power of each coordinate and of each of the six norms.
    exps = per_direction(direction, *[points * (z.shape[1] + len(SIZES) + 1)] * 2)
    providers = {name: passes(call, inputs, direction) for name, call in calls.items()}
    # At the largest size a second or two a direction.
    if points < POINTS[-1] or direction == "forward":
        agree(calls, direction, rtol=1e-4, atol=1e-3)
    case = f"{points} x (5 x 4)"
    compare("lp_nested_log_prob", case, direction, z.dtype, "contiguous", providers, moved=moved, exps=exps)
