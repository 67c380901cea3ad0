"""adain against mean, var, normalise and affine as style-transfer code writes them, eager and compiled.

"instance_norm" is torch's own fused norm followed by the affine: faster than most code in use, and a harder baseline.
"""

import pytest
import torch
import torch.nn.functional as F

import strucfast as sf
from benchmarks import _timing
from benchmarks._passes import leaves, passes

SIZES = (4, 8, 16, 32, 64)
EPS = 1e-5


def eager(x, scale, shift):
    mean = x.mean(dim=(2, 3), keepdim=True)
    std = torch.sqrt(x.var(dim=(2, 3), unbiased=False, keepdim=True) + EPS)
    return scale[..., None, None] * ((x - mean) / std) + shift[..., None, None]


def instance_norm(x, scale, shift):
    return F.instance_norm(x, eps=EPS) * scale[..., None, None] + shift[..., None, None]


@pytest.mark.parametrize("direction", ("forward", "both"))
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("size", SIZES)
def test_adain(compare, size, layout, direction):
    torch.manual_seed(0)
    torch.compiler.reset()
    x = torch.randn(128, 64, size, size)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    inputs = leaves(x, torch.randn(128, 64), torch.randn(128, 64))
    compiled = torch.compile(eager, dynamic=False)
    providers = {
        "strucfast": passes(lambda: sf.ops.adain(*inputs, eps=EPS), inputs, direction),
        "eager": passes(lambda: eager(*inputs), inputs, direction),
        "instance_norm": passes(lambda: instance_norm(*inputs), inputs, direction),
        "torch.compile": passes(lambda: compiled(*inputs), inputs, direction),
    }
    extra = None
    if direction == "both":
        extra = {name: {"extra_bytes": _timing.allocated_bytes(call)} for name, call in providers.items()}
    compare("adain", f"(128,64,{size},{size})", direction, x.dtype, layout, providers, seconds=1.0, extra=extra)
