"""modulate's launchers against the reference: shapes, layouts, per-pixel operands, masks, splits, dtypes."""

import itertools

import pytest
import torch
from common import assert_close, channels_last, gradients, random
from strucfast.triton_kernels import modulate_backward, modulate_forward
from strucfast.triton_kernels.modulate import ModulateConfig

from strucfast import reference

SHAPES = [(2, 3), (2, 3, 5), (3, 5, 3, 2), (2, 3, 2, 3, 2)]
# None is the heuristic; the others loop over ragged tiles, and split S with a second reduction.
CONFIGS = [None, ModulateConfig(2, 2, 1, 1), ModulateConfig(2, 2, 1, 3)]


def inputs(shape, dtype, last, scale_map, shift_map):
    x = random(shape, dtype, 1, last)
    scale = random(shape if scale_map else shape[:2], dtype, 2, last and scale_map)
    shift = random(shape if shift_map else shape[:2], dtype, 3, last and shift_map)
    return x, scale, shift


CASES = [
    (shape, last, scale_map, shift_map)
    for shape, last, scale_map, shift_map in itertools.product(SHAPES, (False, True), (False, True), (False, True))
    if len(shape) > 2 or not (last or scale_map or shift_map)
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "last", "scale_map", "shift_map"), CASES)
def test_against_reference(shape, last, scale_map, shift_map, dtype):
    x, scale, shift = inputs(shape, dtype, last, scale_map, shift_map)
    grad = random(shape, dtype, 4, last)
    tensors = (x, scale, shift)
    (truth,), truth_grads = gradients(reference.modulate, tensors, [grad], torch.float64)
    (eager,), eager_grads = gradients(reference.modulate, tensors, [grad], dtype)
    config = CONFIGS[(len(shape) + last + scale_map) % 3]
    y = modulate_forward(x, scale, shift, config=config)
    assert y.dtype == dtype and y.stride() == x.stride()
    assert_close(y, truth, eager, label="y")
    results = modulate_backward(grad, x, scale, shift_map, 7, config=config)
    for name, result, t, e in zip(("dx", "dscale", "dshift"), results, truth_grads, eager_grads):
        assert_close(result, t, e, label=name)
    assert results[0].stride() == x.stride()


@pytest.mark.parametrize("mask", range(8))
def test_masks(mask):
    x, scale, _ = inputs((2, 3, 5), torch.float32, False, False, False)
    grad = random((2, 3, 5), torch.float32, 4)
    whole = modulate_backward(grad, x, scale, False, 7)
    part = modulate_backward(grad, x, scale, False, mask)
    for bit in range(3):
        if mask >> bit & 1:
            assert torch.equal(part[bit], whole[bit])
        else:
            assert part[bit].shape == (0,)


@pytest.mark.parametrize("config", CONFIGS)
def test_repeats_bitwise(config):
    x, scale, _ = inputs((2, 3, 37), torch.float32, True, False, False)
    grad = random((2, 3, 37), torch.float32, 4, True)
    first = modulate_backward(grad, x, scale, False, 7, config=config)
    second = modulate_backward(grad, x, scale, False, 7, config=config)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_other_strides_and_mixed_layouts():
    x = random((3, 4, 6), torch.float32, 1).transpose(1, 2)
    scale, shift = random((6, 3), torch.float32, 2).t(), random((1, 6), torch.float32, 3).expand(3, 6)
    grad = channels_last(random((3, 6, 4), torch.float32, 4))
    (truth,), truth_grads = gradients(reference.modulate, (x, scale, shift), [grad], torch.float64)
    torch.testing.assert_close(modulate_forward(x, scale, shift), truth.float())
    for result, t in zip(modulate_backward(grad, x, scale, False, 7), truth_grads):
        torch.testing.assert_close(result, t.float())


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (0, 3), (2, 0, 5)])
def test_empty(shape):
    x, scale = torch.zeros(shape), torch.ones(shape[:2])
    assert modulate_forward(x, scale, scale).shape == shape
    dx, dscale, dshift = modulate_backward(x, x, scale, False, 7)
    assert dx.shape == shape and torch.equal(dscale, torch.zeros(shape[:2])) and torch.equal(dshift, dscale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("parameter_dtype", ["same", "float32"])
def test_half_types(dtype, parameter_dtype):
    other = dtype if parameter_dtype == "same" else torch.float32
    x, grad = random((2, 3, 7), dtype, 1), random((2, 3, 7), dtype, 4)
    scale, shift = random((2, 3), other, 2), random((2, 3), other, 3)
    (truth,), truth_grads = gradients(reference.modulate, (x, scale, shift), [grad], torch.float64)
    y = modulate_forward(x, scale, shift)
    assert y.dtype == dtype
    # One unit in the last place: the interpreter truncates where a GPU rounds bfloat16 stores.
    torch.testing.assert_close(y.double(), truth, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    results = modulate_backward(grad, x, scale, False, 7)
    assert [r.dtype for r in results] == [dtype, other, other]
    for result, t in zip(results, truth_grads):
        torch.testing.assert_close(result.double(), t, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_the_comparison_can_fail():
    x, scale, shift = inputs((2, 3, 5), torch.float32, False, False, False)
    truth = reference.modulate(x.double(), scale.double(), shift.double())
    y = modulate_forward(x, scale, shift)
    assert_close(y, truth, truth.float())
    for wrong in (truth * (1 + 1e-4), torch.where(truth == truth.max(), float("nan"), truth), truth[:, :, :4]):
        with pytest.raises(AssertionError):
            assert_close(y, wrong, wrong.float())


def test_errors():
    x, scale = torch.ones(2, 3, 4), torch.ones(2, 3)
    with pytest.raises(TypeError, match="x must be float32"):
        modulate_forward(x.int(), scale, scale)
    with pytest.raises(TypeError, match=r"scale must be torch.float32 .* got torch.float64"):
        modulate_forward(x, scale.double(), scale)
