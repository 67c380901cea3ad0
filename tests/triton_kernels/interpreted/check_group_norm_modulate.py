"""group_norm_modulate's launchers against the reference, on every path: resident, looping, split."""

import functools

import pytest
import torch
from common import ACTIVATIONS, assert_close, channels_last, gradients, random
from strucfast.triton_kernels import group_norm_modulate_backward, group_norm_modulate_forward
from strucfast.triton_kernels.group_norm_modulate import GroupNormConfig

from strucfast import reference

LOOP = GroupNormConfig(groups=1, block_c=2, block_s=2, num_warps=1, resident=False)
SPLIT = GroupNormConfig(groups=1, block_c=2, block_s=2, num_warps=1, resident=False, splits=3)
WIDE_SPLIT = GroupNormConfig(groups=2, block_c=8, block_s=4, num_warps=1, resident=False, splits=2)
WIDE_RESIDENT = GroupNormConfig(groups=2, block_c=8, block_s=16, num_warps=1, resident=True)

# x shape, groups, channels-last, (weight, bias, scale, shift): 0 no, 1 per channel, 2 per pixel; activation; config.
CASES = [
    ((3, 6), 3, False, (1, 1, 1, 1), 1, None),
    ((2, 6), 2, False, (1, 0, 0, 1), 2, None),
    ((2, 6, 5), 2, False, (1, 1, 1, 1), 1, None),
    ((2, 6, 5), 2, True, (1, 1, 2, 2), 1, None),
    ((2, 6, 5), 2, False, (0, 0, 0, 0), 0, LOOP),
    ((2, 6, 5), 2, True, (0, 1, 1, 0), 2, LOOP),
    ((2, 6, 5), 3, False, (1, 1, 2, 1), 4, SPLIT),
    ((2, 6, 5), 2, True, (1, 1, 1, 2), 1, SPLIT),
    ((2, 6, 7), 2, True, (1, 0, 1, 1), 5, WIDE_SPLIT),
    ((2, 9, 7), 3, False, (1, 1, 1, 1), 1, WIDE_SPLIT),
    ((2, 9, 7), 3, True, (1, 1, 1, 1), 3, WIDE_RESIDENT),
    ((2, 4, 3, 3), 1, False, (1, 1, 1, 1), 3, None),
    ((2, 4, 3, 3), 4, True, (1, 1, 1, 1), 5, None),
    ((2, 4, 3, 3), 1, True, (1, 1, 2, 0), 1, SPLIT),
    ((1, 4, 5, 3), 2, False, (1, 1, 0, 2), 2, SPLIT),
    ((2, 4, 2, 3, 2), 2, False, (1, 1, 1, 1), 4, None),
    ((2, 4, 2, 3, 2), 2, True, (1, 1, 1, 1), 1, LOOP),
    ((1, 8, 4, 4), 2, True, (1, 1, 1, 1), 1, None),
]


def inputs(shape, last, has, dtype):
    channels = shape[1]
    x = random(shape, dtype, 1, last)
    weight = random((channels,), dtype, 2) if has[0] else None
    bias = random((channels,), dtype, 3) if has[1] else None
    maps = [
        None if kind == 0 else random(shape[:2] if kind == 1 else shape, dtype, 4 + i, last and kind == 2)
        for i, kind in enumerate(has[2:])
    ]
    return x, weight, bias, *maps


def check(tensors, groups, grad, activation, config, mask=31, eps=1e-5):
    def function(x, *parameters):
        return reference.group_norm_modulate(x, groups, *parameters, activation=ACTIVATIONS[activation], eps=eps)

    x, *parameters = tensors
    (truth,), truth_grads = gradients(function, tensors, [grad], torch.float64)
    (eager,), eager_grads = gradients(function, tensors, [grad], x.dtype)
    y, mean, rstd = group_norm_modulate_forward(x, groups, *parameters, activation, eps, config=config)
    assert y.dtype == x.dtype and y.stride() == x.stride()
    assert_close(y, truth, eager, label="y")
    flat = x.double().reshape(x.shape[0], groups, -1)
    torch.testing.assert_close(mean.double(), flat.mean(2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rstd.double(), torch.rsqrt(flat.var(2, unbiased=False) + eps), rtol=2e-6, atol=0)
    results = group_norm_modulate_backward(grad, x, mean, rstd, groups, *parameters, activation, mask, config=config)
    for name, result, t, e in zip(("dx", "dweight", "dbias", "dscale", "dshift"), results, truth_grads, eager_grads):
        if t is None:
            assert result.shape == (0,), name
        else:
            # dx is what the projection off the mean and xhat leaves of terms of size rstd |grad|.
            floor = float(rstd.max() * grad.abs().max()) if name == "dx" else 1e-30
            assert_close(result, t, e, slack=32, floor=floor, label=name)
    assert results[0].stride() == x.stride()
    return results


@pytest.mark.parametrize(
    ("shape", "groups", "last", "has", "activation", "config", "dtype"),
    [(*case, torch.float32) for case in CASES] + [(*case, torch.float64) for case in CASES[2::3]],
)
def test_against_reference(shape, groups, last, has, activation, config, dtype):
    check(inputs(shape, last, has, dtype), groups, random(shape, dtype, 9, last), activation, config)


@pytest.mark.parametrize(
    ("mask", "config"), [(0, None), (1, None), (18, None), (12, LOOP), (30, LOOP), (1, SPLIT), (2, SPLIT), (28, SPLIT)]
)
def test_masks(mask, config):
    shape = (1, 4, 5)
    x, *parameters = inputs(shape, False, (1, 1, 1, 1), torch.float32)
    grad = random(shape, torch.float32, 9)
    _, mean, rstd = group_norm_modulate_forward(x, 2, *parameters, 1, 1e-5)
    backward = functools.partial(group_norm_modulate_backward, grad, x, mean, rstd, 2, *parameters, 1, config=config)
    whole, part = backward(31), backward(mask)
    for bit in range(5):
        if mask >> bit & 1:
            assert torch.equal(part[bit], whole[bit])
        else:
            assert part[bit].shape == (0,)


@pytest.mark.parametrize("config", [None, LOOP, SPLIT])
def test_big_offset(config):
    # Mean 500 deviations and more away from 0: E[x^2] - m^2 keeps no digit of the variance in float32.
    x = random((2, 4, 9), torch.float32, 1) * 0.125 + 1000.0
    y, _, _ = group_norm_modulate_forward(x, 2, None, None, None, None, 0, 1e-5, config=config)
    truth = reference.group_norm_modulate(x.double(), 2, activation="identity")
    assert float((y.double() - truth).abs().max()) < 4e-6


@pytest.mark.parametrize("config", [None, LOOP, SPLIT])
def test_first_element_far_from_the_rest(config):
    # The element that is subtracted first is an outlier: the variance must survive that too.
    x = random((1, 2, 9), torch.float32, 1) + 3000.0
    x[:, :, 0] = 0.0
    y, _, _ = group_norm_modulate_forward(x, 1, None, None, None, None, 0, 1e-5, config=config)
    truth = reference.group_norm_modulate(x.double(), 1, activation="identity")
    eager = reference.group_norm_modulate(x, 1, activation="identity")
    assert_close(y, truth, eager)


@pytest.mark.parametrize("config", [None, LOOP, SPLIT])
def test_repeats_bitwise(config):
    tensors = inputs((1, 4, 5), True, (1, 1, 1, 1), torch.float32)
    grad = random((1, 4, 5), torch.float32, 9, True)
    first, second = (check(tensors, 2, grad, 1, config) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_constant_group():
    x = torch.full((1, 4, 3), 7.0)
    y, mean, rstd = group_norm_modulate_forward(x, 2, None, None, None, None, 0, 1e-5)
    assert torch.equal(y, torch.zeros_like(x)) and torch.equal(mean, torch.full((1, 2), 7.0))
    torch.testing.assert_close(rstd, torch.full((1, 2), 1e-5**-0.5))


def test_other_strides_and_mixed_layouts():
    x = random((2, 5, 4), torch.float32, 1).transpose(1, 2)
    parameters = inputs((2, 4, 5), True, (1, 1, 2, 1), torch.float32)[1:]
    grad = channels_last(random((2, 4, 5), torch.float32, 9))
    strided = check((x.contiguous(), *parameters), 2, grad, 1, None)
    _, mean, rstd = group_norm_modulate_forward(x, 2, *parameters, 1, 1e-5)
    again = group_norm_modulate_backward(grad, x, mean, rstd, 2, *parameters, 1, 31)
    assert all(torch.equal(a, b) for a, b in zip(strided, again))


@pytest.mark.parametrize("shape", [(0, 4, 3), (0, 4), (2, 4, 0)])
def test_empty(shape):
    x, p = torch.zeros(shape), torch.ones(4)
    y, mean, rstd = group_norm_modulate_forward(x, 2, p, p, None, None, 1, 1e-5)
    assert y.shape == shape and mean.shape == rstd.shape == (shape[0], 2)
    dx, dweight, dbias, dscale, dshift = group_norm_modulate_backward(x, x, mean, rstd, 2, p, p, None, None, 1, 31)
    assert dx.shape == shape and torch.equal(dweight, torch.zeros(4)) and torch.equal(dbias, torch.zeros(4))
    assert dscale.shape == dshift.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    shape = (2, 4, 6)
    x, grad = random(shape, dtype, 1), random(shape, dtype, 9)
    weight, bias = random((4,), torch.float32, 2), random((4,), torch.float32, 3)
    scale, shift = random((2, 4), dtype, 4), random((2, 4), dtype, 5)
    tensors = (x, weight, bias, scale, shift)
    (truth,), truth_grads = gradients(
        lambda x, *p: reference.group_norm_modulate(x, 2, *p), tensors, [grad], torch.float64
    )
    y, mean, rstd = group_norm_modulate_forward(x, 2, weight, bias, scale, shift, 1, 1e-5)
    assert (y.dtype, mean.dtype, rstd.dtype) == (dtype, torch.float32, torch.float32)
    eps = torch.finfo(dtype).eps
    # One unit in the last place: the interpreter truncates where a GPU rounds bfloat16 stores.
    torch.testing.assert_close(y.double(), truth, rtol=eps, atol=eps)
    results = group_norm_modulate_backward(grad, x, mean, rstd, 2, weight, bias, scale, shift, 1, 31)
    assert [r.dtype for r in results] == [dtype, torch.float32, torch.float32, dtype, dtype]
    for result, t in zip(results, truth_grads):
        torch.testing.assert_close(result.double(), t, rtol=eps, atol=eps)


def test_errors():
    x = torch.ones(2, 4, 3)
    with pytest.raises(ValueError, match="num_groups must divide the 4 channels of x, got 3"):
        group_norm_modulate_forward(x, 3, None, None, None, None, 1, 1e-5)
    with pytest.raises(TypeError, match="weight must be"):
        group_norm_modulate_forward(x, 2, torch.ones(4, dtype=torch.float64), None, None, None, 1, 1e-5)
    with pytest.raises(ValueError, match="resident tile must hold whole groups"):
        group_norm_modulate_forward(x, 2, None, None, None, None, 1, 1e-5, config=GroupNormConfig(1, 2, 2, 1, True))
