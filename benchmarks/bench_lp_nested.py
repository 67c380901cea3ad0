"""lp_nested_log_prob against the ISA prior's log-density as published code writes it, eager and compiled.

The ISA-VAE paper's dSprites prior: five subspaces of four, gradients of z, both exponents and the scale.
"""

import pytest
import torch

import strucfast as sf
from benchmarks._passes import leaves, passes
from benchmarks.baselines.lp_nested import isa_log_prob

SIZES = (4, 4, 4, 4, 4)
POINTS = (2048, 65536, 1048576)


@pytest.mark.parametrize("direction", ("forward", "both"))
@pytest.mark.parametrize("points", POINTS)
def test_lp_nested(compare, points, direction):
    torch.manual_seed(0)
    torch.compiler.reset()
    p = torch.full((len(SIZES),), 2.2)
    inputs = leaves(torch.randn(points, sum(SIZES)), torch.tensor(2.1), p, torch.tensor(2.09312))
    compiled = torch.compile(isa_log_prob, dynamic=False)

    def call(function):
        z, p0, p, scale = inputs
        return passes(lambda: function(z, SIZES, p0, p, scale), inputs, direction)

    providers = {
        "strucfast": call(sf.ops.lp_nested_log_prob),
        "eager": call(isa_log_prob),
        "torch.compile": call(compiled),
    }
    compare("lp_nested_log_prob", f"{points} x (5 x 4)", direction, torch.float32, "contiguous", providers)
