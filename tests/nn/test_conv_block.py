"""ConvBlock against the plain torch layers it replaces."""

import itertools

import pytest
import torch
from torch import nn

import strucfast as sf


def _plain(block, x, scale, shift):
    y = block.to_torch()(x)
    y = y if scale is None else y * scale[:, :, None, None]
    return y if shift is None else y + shift[:, :, None, None]


@pytest.mark.parametrize(("upsample", "pool", "affine"), list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("activation", ["mish", "relu"])
def test_values_and_gradients_match_plain_torch(upsample, pool, affine, activation):
    torch.manual_seed(0)
    block = sf.nn.ConvBlock(3, 16, kernel_size=5, upsample=upsample, pool=pool, activation=activation).double()
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(2, 16, dtype=torch.float64, requires_grad=True) if affine else None
    shift = torch.randn(2, 16, dtype=torch.float64, requires_grad=True) if affine else None
    y = block(x, scale, shift)
    plain = block.to_torch()
    expected = plain(x)
    if affine:
        expected = expected * scale[:, :, None, None] + shift[:, :, None, None]
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-11)
    upstream = torch.randn_like(y)
    inputs = [tensor for tensor in (x, scale, shift) if tensor is not None]
    found = torch.autograd.grad(y, [*inputs, *block.parameters()], upstream)
    wanted = torch.autograd.grad(expected, [*inputs, *plain.parameters()], upstream)
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_float32_and_bf16_follow_float64():
    torch.manual_seed(0)
    block = sf.nn.ConvBlock(8, 16)
    x, scale, shift = torch.randn(2, 8, 8, 8), 1 + 0.1 * torch.randn(2, 16), 0.1 * torch.randn(2, 16)
    exact = _plain(block.double(), x.double(), scale.double(), shift.double())
    block.float()
    torch.testing.assert_close(block(x, scale, shift).double(), exact, rtol=1e-4, atol=2e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = block(x, scale, shift)
    assert half.dtype == torch.bfloat16 and block.conv.weight.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=5e-2, atol=5e-2)


def test_state_dict_loads_both_ways():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    block = sf.nn.ConvBlock.from_torch(conv, norm, upsample=True, pool=True)
    assert sorted(block.state_dict()) == ["conv.bias", "conv.weight", "norm.bias", "norm.weight"]
    plain = nn.Sequential()
    plain.conv, plain.norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
    plain.load_state_dict(block.state_dict())
    for name, value in conv.state_dict().items():
        assert torch.equal(plain.state_dict()[f"conv.{name}"], value)
    fresh = sf.nn.ConvBlock(3, 16, num_groups=4)
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(fresh.conv.weight, conv.weight) and torch.equal(fresh.norm.weight, norm.weight)
    assert fresh.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert sorted(block.to_torch().state_dict()) == sorted(block.state_dict())


def test_output_is_channels_last_from_either_layout():
    block = sf.nn.ConvBlock(4, 8)
    x = torch.randn(2, 4, 6, 6)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert block(x.contiguous(memory_format=layout)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sf.nn.ConvBlock(3, 12), "num_groups must divide out_channels = 12, got 8"),
        (lambda: sf.nn.ConvBlock(3, 16, kernel_size=4), "kernel_size must be odd, got 4"),
        (lambda: sf.nn.ConvBlock(3, 16, activation="gelu"), "activation must be one of"),
        (lambda: sf.nn.ConvBlock(3, 16)(torch.zeros(1, 4, 8, 8)), r"x must have shape \(N, 3, H, W\)"),
        (lambda: sf.nn.ConvBlock(3, 16)(torch.zeros(2, 3, 8, 8), torch.zeros(2, 15), torch.zeros(2, 15)), "scale"),
        (lambda: sf.nn.ConvBlock.from_torch(nn.Conv2d(3, 16, 3), nn.GroupNorm(8, 16)), "conv must be square"),
        (lambda: sf.nn.ConvBlock.from_torch(nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(8, 16)), "stride 1"),
        (lambda: sf.nn.ConvBlock.from_torch(nn.Conv2d(3, 16, 1), nn.GroupNorm(8, 16, affine=False)), "norm must be an"),
    ],
)
def test_bad_input_names_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
