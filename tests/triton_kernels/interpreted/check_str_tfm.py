"""str_tfm's launchers against the reference: widths that are no powers of two, depths, activations, scale maps."""

import itertools

import pytest
import torch
from common import ACTIVATIONS, SCALE_MAPS, assert_close, gradients, random
from strucfast.triton_kernels import str_tfm_backward, str_tfm_forward
from strucfast.triton_kernels.str_tfm import MAX_LAYERS, StrTfmConfig

from strucfast import reference

# samples, variables, widths (k, hidden..., 2C), activation, scale map, configuration.
SMALL = StrTfmConfig(block_m=16, block_n=16, block_k=16, block_samples=16, num_warps=1, splits=2)
CASES = [
    (3, 2, (1, 8), 0, 0, None),
    (3, 2, (2, 5, 6), 1, 1, None),
    (18, 2, (1, 17, 4), 2, 2, None),
    (5, 1, (3, 40, 4, 33, 6), 3, 3, None),
    (19, 1, (20, 7, 4, 3, 2, 2), 4, 4, SMALL),
    (17, 2, (1, 6, 6, 34), 5, 0, SMALL),
    (2, 1, (1, 270, 2), 1, 2, None),
]


def inputs(samples, variables, widths, dtype):
    u = random((samples, variables, widths[0]), dtype, 1)
    pairs = list(itertools.pairwise(widths))
    weights = [random((variables, out, inputs), dtype, 10 + i) / inputs**0.5 for i, (inputs, out) in enumerate(pairs)]
    biases = [random((variables, out), dtype, 30 + i) for i, (_, out) in enumerate(pairs)]
    return u, weights, biases


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("samples", "variables", "widths", "activation", "scale_map", "config"), CASES)
def test_against_reference(samples, variables, widths, activation, scale_map, config, dtype):
    u, weights, biases = inputs(samples, variables, widths, dtype)
    layers = len(weights)

    def function(u, *parameters):
        names = {"activation": ACTIVATIONS[activation], "scale_map": SCALE_MAPS[scale_map]}
        return reference.str_tfm(u, parameters[:layers], parameters[layers:], **names)

    grads = [random((samples, variables, widths[-1] // 2), dtype, seed) for seed in (5, 6)]
    tensors = (u, *weights, *biases)
    truth, truth_grads = gradients(function, tensors, grads, torch.float64)
    eager, eager_grads = gradients(function, tensors, grads, dtype)
    scale, shift, saved = str_tfm_forward(u, weights, biases, activation, scale_map, True, config=config)
    assert saved.shape == (variables, samples, sum(widths[1:-1]))
    for name, result, t, e in zip(("scale", "shift"), (scale, shift), truth, eager):
        assert_close(result, t, e, label=name)
    if len(widths) > 2:
        hidden = torch.einsum("nvk,vok->vno", u.double(), weights[0].double()) + biases[0].double()[:, None]
        torch.testing.assert_close(saved[:, :, : widths[1]].double(), hidden, rtol=1e-5, atol=1e-5)
    du, dweights, dbiases = str_tfm_backward(
        *grads, u, weights, biases, scale, saved, activation, scale_map, 3, config=config
    )
    for index, (result, t, e) in enumerate(zip((du, *dweights, *dbiases), truth_grads, eager_grads)):
        assert_close(result, t, e, slack=64, label=f"gradient {index}")


@pytest.mark.parametrize("mask", range(4))
def test_masks(mask):
    u, weights, biases = inputs(3, 2, (2, 5, 6), torch.float32)
    grad = random((3, 2, 3), torch.float32, 5)
    scale, _, saved = str_tfm_forward(u, weights, biases, 1, 0, True)
    whole = str_tfm_backward(grad, grad, u, weights, biases, scale, saved, 1, 0, 3)
    du, dweights, dbiases = str_tfm_backward(grad, grad, u, weights, biases, scale, saved, 1, 0, mask)
    assert torch.equal(du, whole[0]) if mask & 1 else du.shape == (0,)
    for part, all_of_it in zip((*dweights, *dbiases), (*whole[1], *whole[2])):
        assert torch.equal(part, all_of_it) if mask & 2 else part.shape == (0,)


def test_save_is_optional_and_repeats_bitwise():
    u, weights, biases = inputs(18, 2, (2, 5, 6), torch.float32)
    first = str_tfm_forward(u, weights, biases, 1, 0, True)
    second = str_tfm_forward(u, weights, biases, 1, 0, False)
    assert second[2].shape == (0,) and torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    grad = random((18, 2, 3), torch.float32, 5)
    runs = [
        str_tfm_backward(grad, grad, u, weights, biases, first[0], first[2], 1, 0, 3, config=SMALL) for _ in range(2)
    ]
    flat = [(du, *dweights, *dbiases) for du, dweights, dbiases in runs]
    assert all(torch.equal(a, b) for a, b in zip(*flat))


def test_non_contiguous():
    u, weights, biases = inputs(2, 3, (3, 4), torch.float32)
    expected = str_tfm_forward(u, weights, biases, 0, 0, True)
    turned = u.transpose(0, 2).contiguous().transpose(0, 2)
    strided = str_tfm_forward(turned, [w.mT.contiguous().mT for w in weights], biases, 0, 0, True)
    assert all(torch.equal(a, b) for a, b in zip(expected, strided))


def test_empty():
    u, weights, biases = inputs(0, 2, (2, 5, 6), torch.float32)
    scale, shift, saved = str_tfm_forward(u, weights, biases, 1, 0, True)
    assert scale.shape == shift.shape == (0, 2, 3)
    du, dweights, dbiases = str_tfm_backward(scale, shift, u, weights, biases, scale, saved, 1, 0, 3)
    assert du.shape == u.shape and all(not d.any() for d in (*dweights, *dbiases))


def test_errors():
    u, weights, biases = inputs(2, 1, (2,) * (MAX_LAYERS + 2), torch.float32)
    with pytest.raises(ValueError, match=f"1 to {MAX_LAYERS} layers .* got {MAX_LAYERS + 1} weights"):
        str_tfm_forward(u, weights, biases, 1, 0, True)
    with pytest.raises(TypeError, match=r"weights\[0\] must be torch.float32"):
        str_tfm_forward(u, [weights[0].double()], biases[:1], 1, 0, True)
    with pytest.raises(TypeError, match=r"u must be float32 or float64, got torch\.bfloat16"):
        str_tfm_forward(u.bfloat16(), weights[:1], biases[:1], 1, 0, True)
    scale, _, _ = str_tfm_forward(u, weights[:2], biases[:2], 1, 0, False)
    with pytest.raises(ValueError, match="saved must be"):
        str_tfm_backward(scale, scale, u, weights[:2], biases[:2], scale, u.new_empty(0), 1, 0, 3)
