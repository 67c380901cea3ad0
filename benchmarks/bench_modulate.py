"""modulate against ``x * scale + shift`` as existing code writes it, eager and compiled."""

import pytest
import torch

import strucfast as sf
from benchmarks._passes import DIRECTIONS, leaves, passes

SIZES = (4, 8, 16, 32, 64)


def eager(x, scale, shift):
    return x * scale[..., None, None] + shift[..., None, None]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("size", SIZES)
def test_modulate(compare, size, layout, direction):
    torch.manual_seed(0)
    torch.compiler.reset()
    x = torch.randn(128, 64, size, size)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    inputs = leaves(x, torch.randn(128, 64), torch.randn(128, 64))
    compiled = torch.compile(eager, dynamic=False)
    providers = {
        "strucfast": passes(lambda: sf.ops.modulate(*inputs), inputs, direction),
        "eager": passes(lambda: eager(*inputs), inputs, direction),
        "torch.compile": passes(lambda: compiled(*inputs), inputs, direction),
    }
    compare("modulate", f"(128,64,{size},{size})", direction, x.dtype, layout, providers)
