"""adain's launchers against the reference, on every path: resident, looping, split."""

import functools

import pytest
import torch
from common import assert_close, channels_last, gradients, random
from strucfast.triton_kernels import adain_backward, adain_forward
from strucfast.triton_kernels._layout import Layout
from strucfast.triton_kernels.adain import adain_config
from strucfast.triton_kernels.group_norm_modulate import GroupNormConfig

from strucfast import reference

WIDE = GroupNormConfig(groups=4, block_c=4, block_s=16, num_warps=1, resident=True)
LOOP = GroupNormConfig(groups=2, block_c=2, block_s=2, num_warps=1, resident=False)
SPLIT = GroupNormConfig(groups=1, block_c=1, block_s=2, num_warps=1, resident=False, splits=3)
WIDE_SPLIT = GroupNormConfig(groups=4, block_c=4, block_s=4, num_warps=1, resident=False, splits=2)

# x shape, channels-last, (scale, shift) per pixel, config.
CASES = [
    ((3, 6), False, (0, 0), None),
    ((2, 5, 1, 1), False, (1, 0), None),
    ((2, 6, 5), False, (0, 0), None),
    ((2, 6, 5), True, (0, 0), None),
    ((2, 6, 5), True, (1, 1), None),
    ((2, 3, 5), False, (1, 0), WIDE),
    ((2, 3, 5), True, (0, 1), WIDE),
    ((2, 3, 7), False, (0, 0), LOOP),
    ((2, 3, 7), True, (1, 0), LOOP),
    ((2, 3, 7), False, (0, 1), SPLIT),
    ((2, 3, 7), True, (0, 0), SPLIT),
    ((2, 3, 7), False, (1, 1), WIDE_SPLIT),
    ((2, 6, 7), True, (0, 0), WIDE_SPLIT),
    ((2, 4, 3, 3), False, (1, 1), None),
    ((1, 4, 2, 3, 2), True, (0, 0), LOOP),
]


def inputs(shape, last, maps, dtype):
    parameters = [random(shape if m else shape[:2], dtype, 2 + i, bool(last and m)) for i, m in enumerate(maps)]
    return random(shape, dtype, 1, last), *parameters


def check(tensors, grad, config, mask=7, eps=1e-5):
    (truth,), truth_grads = gradients(functools.partial(reference.adain, eps=eps), tensors, [grad], torch.float64)
    (eager,), eager_grads = gradients(functools.partial(reference.adain, eps=eps), tensors, [grad], tensors[0].dtype)
    x, scale, shift = tensors
    y, statistics = adain_forward(*tensors, eps, config=config)
    assert y.dtype == x.dtype and y.stride() == x.stride()
    assert_close(y, truth, eager, label="y")
    flat = x.double().reshape(*x.shape[:2], -1)
    mean, rstd = statistics.double()
    torch.testing.assert_close(mean, (flat - flat[:, :, :1]).mean(2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rstd, torch.rsqrt(flat.var(2, unbiased=False) + eps), rtol=2e-6, atol=0)
    results = adain_backward(grad, x, statistics, scale, shift.dim() > 2, mask, config=config)
    # What the projection off the mean and xhat leaves of terms of size rstd |grad|.
    floor = float(rstd.max() * grad.abs().max())
    for name, result, t, e in zip(("dx", "dscale", "dshift"), results, truth_grads, eager_grads):
        assert_close(result, t, e, slack=32, floor=floor if name == "dx" else 1e-30, label=name)
    assert results[0].stride() == x.stride()
    return results


@pytest.mark.parametrize(
    ("shape", "last", "maps", "config", "dtype"),
    [(*case, torch.float32) for case in CASES] + [(*case, torch.float64) for case in CASES[2::3]],
)
def test_against_reference(shape, last, maps, config, dtype):
    check(inputs(shape, last, maps, dtype), random(shape, dtype, 9, last), config)


@pytest.mark.parametrize("config", [None, LOOP, SPLIT])
@pytest.mark.parametrize("mask", [0, 1, 2, 4, 5, 6])
def test_masks(mask, config):
    x, scale, shift = inputs((1, 4, 5), False, (0, 0), torch.float32)
    grad = random((1, 4, 5), torch.float32, 9)
    _, statistics = adain_forward(x, scale, shift, 1e-5)
    backward = functools.partial(adain_backward, grad, x, statistics, scale, False, config=config)
    whole, part = backward(7), backward(mask)
    for bit in range(3):
        if mask >> bit & 1:
            assert torch.equal(part[bit], whole[bit])
        else:
            assert part[bit].shape == (0,)


@pytest.mark.parametrize("config", [None, LOOP, SPLIT])
@pytest.mark.parametrize("last", [False, True])
def test_big_offset_in_both_directions(config, last):
    """4000 deviations from 0: a mean that is not relative to the first pixel would cost xhat four digits."""
    x = (random((2, 3, 9), torch.float32, 1) * 0.125 - 500.0).mul(1024).round().div(1024)
    x = channels_last(x) if last else x
    scale, shift = (random((2, 3), torch.float32, i) for i in (2, 3))
    grad = random((2, 3, 9), torch.float32, 9, last)
    (truth,), exact = gradients(reference.adain, (x, scale, shift), [grad], torch.float64)
    y, statistics = adain_forward(x, scale, shift, 1e-5, config=config)
    results = adain_backward(grad, x, statistics, scale, False, 7, config=config)
    for found, want in zip((y, *results), (truth, *exact)):
        assert float((found.double() - want).abs().max()) <= 2e-6 * max(1.0, float(want.abs().max()))


def test_constant_slice():
    x = torch.full((1, 2, 3), 7.0)
    scale, shift = random((1, 2), torch.float32, 1), random((1, 2), torch.float32, 2)
    y, statistics = adain_forward(x, scale, shift, 1e-5)
    assert torch.equal(y, shift[..., None].expand(1, 2, 3)) and torch.equal(statistics[0], torch.zeros(1, 2))
    torch.testing.assert_close(statistics[1], torch.full((1, 2), 1e-5**-0.5))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 1, 1)])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_one_pixel(shape, per_pixel):
    x, scale, shift = inputs(shape, False, (per_pixel, per_pixel), torch.float32)
    y, statistics = adain_forward(x, scale, shift, 1e-5)
    assert torch.equal(y.reshape(2, 3), shift.reshape(2, 3))
    grad = random(shape, torch.float32, 9)
    dx, dscale, dshift = adain_backward(grad, x, statistics, scale, shift.dim() > 2, 7)
    assert torch.equal(dx, torch.zeros(shape)) and torch.equal(dscale, torch.zeros_like(scale))
    assert torch.equal(dshift, grad.reshape(shift.shape))


@pytest.mark.parametrize("shape", [(0, 4, 3), (0, 4), (2, 4, 0)])
def test_empty(shape):
    x, p = torch.zeros(shape), torch.ones(shape[:2])
    y, statistics = adain_forward(x, p, p, 1e-5)
    assert y.shape == shape and statistics.shape == (2, *shape[:2])
    dx, dscale, dshift = adain_backward(x, x, statistics, p, False, 7)
    assert dx.shape == shape and torch.equal(dscale, torch.zeros_like(p)) and torch.equal(dshift, torch.zeros_like(p))


def test_other_strides_and_mixed_layouts():
    x = random((2, 5, 4), torch.float32, 1).transpose(1, 2)[:, ::2]
    scale, shift = random((2, 2, 5), torch.float32, 2, True), random((2, 2), torch.float32, 3).t()
    grad = channels_last(random((2, 2, 5), torch.float32, 9))
    _, statistics = adain_forward(x, scale, shift, 1e-5)
    again = adain_backward(grad, x, statistics, scale, False, 7)
    plain = check((x.contiguous(), scale.contiguous(), shift.contiguous()), grad.contiguous(), None)
    assert all(torch.equal(a, b) for a, b in zip(plain, again))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wide", [False, True])
def test_half_types(dtype, wide):
    kind = torch.float32 if wide else dtype
    x, grad = random((2, 4, 6), dtype, 1), random((2, 4, 6), dtype, 9)
    scale, shift = random((2, 4), kind, 2), random((2, 4), kind, 3)
    (truth,), exact = gradients(reference.adain, (x, scale, shift), [grad], torch.float64)
    y, statistics = adain_forward(x, scale, shift, 1e-5)
    results = adain_backward(grad, x, statistics, scale, False, 7)
    assert [t.dtype for t in (y, statistics, *results)] == [dtype, torch.float32, dtype, kind, kind]
    eps = torch.finfo(dtype).eps
    # One unit in the last place: the interpreter truncates where a GPU rounds bfloat16 stores.
    for found, want in zip((y, *results), (truth, *exact)):
        torch.testing.assert_close(found.double(), want, rtol=eps, atol=eps)


@pytest.mark.parametrize(
    "layout", [(128, 64, 4096), (128, 64, 16), (2, 3, 262144), (4, 1000, 49), (1, 7, 2), (8, 4, 1)]
)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("limit", [8192, 16384])
def test_tiles_of_the_heuristic_fit(layout, last, itemsize, limit):
    batch, channels, spatial = layout
    rows = Layout(batch, channels, spatial, 1, channels, True)
    flat = Layout(1, batch * channels, spatial, spatial, 1, False)
    config = adain_config("adain", rows if last else flat, itemsize, limit, torch.device("cpu"))
    assert config.block_c == config.groups and config.groups * config.block_s <= limit
    assert not config.resident or config.block_s >= spatial
    assert config.splits == 1 or not config.resident
    for value in (config.groups, config.block_s, config.num_warps):
        assert value & (value - 1) == 0 and value >= 1


def test_errors():
    x, p = torch.ones(2, 4, 3), torch.ones(2, 4)
    with pytest.raises(TypeError, match="scale must be"):
        adain_forward(x, p.double(), p, 1e-5)
    with pytest.raises(ValueError, match="resident tile must hold whole groups"):
        adain_forward(x, p, p, 1e-5, config=GroupNormConfig(1, 1, 2, 1, True))
