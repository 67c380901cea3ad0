"""modulate against ``x * scale + shift`` as existing code writes it, eager and compiled, and torch.addcmul."""

import pytest
import torch

import strucfast as sf
from benchmarks._passes import DIRECTIONS, agree, bytes_of, leaves, passes, per_direction

SIZES = (4, 8, 16, 32, 64)


def eager(x, scale, shift):
    return x * scale[..., None, None] + shift[..., None, None]


def addcmul(x, scale, shift):
    return torch.addcmul(shift[..., None, None], x, scale[..., None, None])


@pytest.mark.compiles
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("size", SIZES)
def test_modulate(compare, size, layout, direction):
    torch.manual_seed(0)
    torch.compiler.reset()
    x = torch.randn(128, 64, size, size)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    inputs = leaves(x, torch.randn(128, 64), torch.randn(128, 64))
    functions = {
        "strucfast": sf.ops.modulate,
        "eager": eager,
        "addcmul": addcmul,
        "torch.compile": torch.compile(eager, dynamic=False),
    }
    providers = {name: passes(lambda f=f: f(*inputs), inputs, direction) for name, f in functions.items()}
    # At the largest size a second or two a direction.
    if size < SIZES[-1] or direction == "forward":
        agree({name: lambda f=f: f(*inputs) for name, f in functions.items()}, direction, rtol=1e-5, atol=1e-5)
    # Backward: the upstream gradient and x in, a gradient of each input out.
    moved = per_direction(direction, bytes_of(*inputs, x), bytes_of(x, *inputs[:2], *inputs))
    compare("modulate", f"(128,64,{size},{size})", direction, x.dtype, layout, providers, seconds=0.6, moved=moved)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_modulate_of_features(compare, direction):
    """One number per sample and channel, as the layers of an MLP have them."""
    torch.manual_seed(0)
    inputs = leaves(*torch.randn(3, 128, 64))

    def plain(x, scale, shift):
        return x * scale + shift

    functions = {"strucfast": sf.ops.modulate, "eager": plain, "addcmul": lambda x, s, b: torch.addcmul(b, x, s)}
    providers = {name: passes(lambda f=f: f(*inputs), inputs, direction) for name, f in functions.items()}
    agree({name: lambda f=f: f(*inputs) for name, f in functions.items()}, direction, rtol=1e-5, atol=1e-5)
    compare("modulate", "(128,64)", direction, torch.float32, "contiguous", providers, seconds=0.3)
