"""group_norm_modulate against GroupNorm, Mish, multiply, add as existing code writes them, eager and compiled.

"addcmul" is the best that torch's own fused functions give: its GroupNorm, its Mish, multiply and add in one pass. In
bfloat16 forward and backward together, as a training step sees it; only STRUCFAST_FULL=1 has that in contiguous layout.
"""

import pytest
import torch
import torch.nn.functional as F

import strucfast as sf
from benchmarks import _timing
from benchmarks._passes import DIRECTIONS, bytes_of, leaves, passes, per_direction

SIZES = (4, 8, 16, 32, 64)
GROUPS = 8
LAYOUTS = ("contiguous", "channels_last")
WAYS = [(torch.float32, layout, direction) for layout in LAYOUTS for direction in DIRECTIONS]
WAYS += [(torch.bfloat16, layout, "both") for layout in (LAYOUTS if _timing.full() else LAYOUTS[1:])]


def eager(x, weight, bias, scale, shift):
    return F.mish(F.group_norm(x, GROUPS, weight, bias)) * scale[..., None, None] + shift[..., None, None]


def addcmul(x, weight, bias, scale, shift):
    activated = F.mish(F.group_norm(x, GROUPS, weight, bias))
    return torch.addcmul(shift[..., None, None], activated, scale[..., None, None])


def fused(x, weight, bias, scale, shift):
    return sf.ops.group_norm_modulate(x, GROUPS, weight, bias, scale, shift)


@pytest.mark.compiles
@pytest.mark.parametrize("dtype,layout,direction", WAYS, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("size", SIZES)
def test_group_norm_modulate(compare, size, dtype, layout, direction):
    torch.manual_seed(0)
    torch.compiler.reset()
    x = torch.randn(128, 64, size, size, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    inputs = leaves(x, *(torch.randn(shape, dtype=dtype) for shape in ((64,), (64,), (128, 64), (128, 64))))
    functions = {
        "strucfast": fused,
        "eager": eager,
        "addcmul": addcmul,
        "torch.compile": torch.compile(eager, dynamic=False),
    }
    providers = {name: passes(lambda f=f: f(*inputs), inputs, direction) for name, f in functions.items()}
    # Backward: the upstream gradient and all inputs but the shift in, a gradient of each input out.
    moved = per_direction(direction, bytes_of(*inputs, x), bytes_of(x, *inputs[:-1], *inputs))
    # Mish takes one exp, and its derivative the same one again.
    exps = per_direction(direction, x.numel(), x.numel())
    case = f"(128,64,{size},{size})"
    compare("group_norm_modulate", case, direction, dtype, layout, providers, seconds=0.6, moved=moved, exps=exps)
