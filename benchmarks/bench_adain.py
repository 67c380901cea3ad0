"""adain against mean, var, normalise and affine as style-transfer code writes them, eager and compiled.

"instance_norm" is torch's own fused norm followed by the affine: faster than most code in use, and a harder baseline.
"""

import pytest
import torch
import torch.nn.functional as F

import strucfast as sf
from benchmarks._passes import DIRECTIONS, agree, bytes_of, leaves, passes, per_direction

SIZES = (4, 8, 16, 32, 64)
EPS = 1e-5


def ours(x, scale, shift):
    return sf.ops.adain(x, scale, shift, eps=EPS)


def eager(x, scale, shift):
    mean = x.mean(dim=(2, 3), keepdim=True)
    std = torch.sqrt(x.var(dim=(2, 3), unbiased=False, keepdim=True) + EPS)
    return scale[..., None, None] * ((x - mean) / std) + shift[..., None, None]


def instance_norm(x, scale, shift):
    return torch.addcmul(shift[..., None, None], F.instance_norm(x, eps=EPS), scale[..., None, None])


@pytest.mark.compiles
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("size", SIZES)
def test_adain(compare, size, layout, direction):
    torch.manual_seed(0)
    torch.compiler.reset()
    x = torch.randn(128, 64, size, size)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    inputs = leaves(x, torch.randn(128, 64), torch.randn(128, 64))
    functions = {
        "strucfast": ours,
        "eager": eager,
        "instance_norm": instance_norm,
        "torch.compile": torch.compile(eager, dynamic=False),
    }
    providers = {name: passes(lambda f=f: f(*inputs), inputs, direction) for name, f in functions.items()}
    # At the largest size a second or two a direction.
    if size < SIZES[-1] or direction == "forward":
        agree({name: lambda f=f: f(*inputs) for name, f in functions.items()}, direction, rtol=1e-4, atol=1e-4)
    # Backward: the upstream gradient, x and the scale in, a gradient of each input out.
    moved = per_direction(direction, bytes_of(*inputs, x), bytes_of(x, *inputs[:2], *inputs))
    compare("adain", f"(128,64,{size},{size})", direction, x.dtype, layout, providers, seconds=0.6, moved=moved)
