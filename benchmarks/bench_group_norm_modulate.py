"""group_norm_modulate against GroupNorm, Mish, multiply, add as existing code writes them, eager and compiled."""

import pytest
import torch
import torch.nn.functional as F

import strucfast as sf
from benchmarks import _timing
from benchmarks._passes import DIRECTIONS, leaves, passes

SIZES = (4, 8, 16, 32, 64)
GROUPS = 8


def eager(x, weight, bias, scale, shift):
    return F.mish(F.group_norm(x, GROUPS, weight, bias)) * scale[..., None, None] + shift[..., None, None]


def fused(x, weight, bias, scale, shift):
    return sf.ops.group_norm_modulate(x, GROUPS, weight, bias, scale, shift)


# bfloat16 is measured as a training step sees it, forward and backward together.
WAYS = [(torch.float32, d) for d in DIRECTIONS] + [(torch.bfloat16, "both")]


@pytest.mark.parametrize("dtype,direction", WAYS, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("size", SIZES)
def test_group_norm_modulate(compare, size, dtype, layout, direction):
    torch.manual_seed(0)
    torch.compiler.reset()
    x = torch.randn(128, 64, size, size, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    inputs = leaves(x, *(torch.randn(shape, dtype=dtype) for shape in ((64,), (64,), (128, 64), (128, 64))))
    compiled = torch.compile(eager, dynamic=False)
    providers = {
        "strucfast": passes(lambda: fused(*inputs), inputs, direction),
        "eager": passes(lambda: eager(*inputs), inputs, direction),
        "torch.compile": passes(lambda: compiled(*inputs), inputs, direction),
    }
    extra = None
    if direction == "both":
        extra = {name: {"extra_bytes": _timing.allocated_bytes(call)} for name, call in providers.items()}
    compare("group_norm_modulate", f"(128,64,{size},{size})", direction, dtype, layout, providers, extra=extra)
