"""group_norm_modulate against GroupNorm, Mish, multiply, add as existing code writes them, eager and compiled.

By default torch.compile is compared at 16 and 64 pixels; in bfloat16 forward and backward together, as a training step
sees it, at these sizes in channels_last. Only STRUCFAST_FULL=1 has torch.compile and bfloat16 at all sizes and in both
layouts, and "addcmul", which is the best that torch's own fused functions give: its GroupNorm, its Mish, then multiply
and add in one pass (within a few per cent of eager).
"""

import pytest
import torch
import torch.nn.functional as F

import strucfast as sf
from benchmarks import _timing
from benchmarks._passes import DIRECTIONS, agree, bytes_of, leaves, passes, per_direction

SIZES = (4, 8, 16, 32, 64)
GROUPS = 8
# Eager rounds to bfloat16 after each of its four steps.
TOLERANCES = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.bfloat16: {"rtol": 0.05, "atol": 0.25}}
COMPILED = (16, 64)
LAYOUTS = ("contiguous", "channels_last")
CASES = [(size, torch.float32, layout, way) for size in SIZES for layout in LAYOUTS for way in DIRECTIONS]
CASES += [
    (size, torch.bfloat16, layout, "both")
    for size in (SIZES if _timing.full() else COMPILED)
    for layout in (LAYOUTS if _timing.full() else ("channels_last",))
]


def eager(x, weight, bias, scale, shift):
    return F.mish(F.group_norm(x, GROUPS, weight, bias)) * scale[..., None, None] + shift[..., None, None]


def addcmul(x, weight, bias, scale, shift):
    activated = F.mish(F.group_norm(x, GROUPS, weight, bias))
    return torch.addcmul(shift[..., None, None], activated, scale[..., None, None])


def fused(x, weight, bias, scale, shift):
    return sf.ops.group_norm_modulate(x, GROUPS, weight, bias, scale, shift)


@pytest.mark.compiles
@pytest.mark.parametrize("size,dtype,layout,direction", CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_group_norm_modulate(compare, size, dtype, layout, direction):
    torch.manual_seed(0)
    torch.compiler.reset()
    x = torch.randn(128, 64, size, size, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    inputs = leaves(x, *(torch.randn(shape, dtype=dtype) for shape in ((64,), (64,), (128, 64), (128, 64))))
    functions = {
        "strucfast": fused,
        "eager": eager,
    }
    if _timing.full() or size in COMPILED:
        functions["torch.compile"] = torch.compile(eager, dynamic=False)
    if _timing.full():
        functions["addcmul"] = addcmul
    providers = {name: passes(lambda f=f: f(*inputs), inputs, direction) for name, f in functions.items()}
    # At the largest size a second or two a direction.
    if size < SIZES[-1] or direction == "forward":
        agree({name: lambda f=f: f(*inputs) for name, f in functions.items()}, direction, **TOLERANCES[dtype])
    # Backward: the upstream gradient and all inputs but the shift in, a gradient of each input out.
    moved = per_direction(direction, bytes_of(*inputs, x), bytes_of(x, *inputs[:-1], *inputs))
    # Mish takes one exp, and its derivative the same one again.
    exps = per_direction(direction, x.numel(), x.numel())
    case = f"(128,64,{size},{size})"
    compare("group_norm_modulate", case, direction, dtype, layout, providers, seconds=0.6, moved=moved, exps=exps)
