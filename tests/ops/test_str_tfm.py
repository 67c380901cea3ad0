"""str_tfm: each variable sees its own MLP only, scale maps start at one, and errors a person can act on."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strucfast import ops
from strucfast.ops.str_tfm import SPEC
from strucfast.reference._activations import SCALE_MAPS


def bank(d, widths, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    pairs = list(pairwise(widths))
    weights = [torch.randn(d, o, i, generator=generator, dtype=torch.float64).to(dtype) for i, o in pairs]
    return weights, [torch.randn(d, o, generator=generator, dtype=torch.float64).to(dtype) for _, o in pairs]


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 70),
    d=st.integers(1, 4),
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    channels=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_equals_a_loop_of_linear_layers(n, d, widths, channels, seed):
    weights, biases = bank(d, [*widths, 2 * channels], seed, torch.float64)
    weights = [w / w.shape[2] ** 0.5 for w in weights]
    u = torch.randn(n, d, widths[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale, shift = ops.str_tfm(u, weights, biases)
    for variable in range(d):
        hidden = u[:, variable]
        for layer, (weight, bias) in enumerate(zip(weights, biases)):
            hidden = torch.nn.functional.mish(hidden) if layer else hidden
            hidden = torch.nn.functional.linear(hidden, weight[variable], bias[variable])
        torch.testing.assert_close(scale[:, variable], hidden[:, :channels].exp(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(shift[:, variable], hidden[:, channels:], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scale_map", SCALE_MAPS)
def test_zero_logits_give_scale_one(scale_map):
    weights, biases = bank(3, (2, 8, 10))
    weights[-1].zero_(), biases[-1].zero_()
    scale, shift = ops.str_tfm(torch.randn(4, 3, 2), weights, biases, scale_map=scale_map)
    torch.testing.assert_close(scale, torch.ones(4, 3, 5), rtol=0, atol=2e-7)
    assert torch.equal(shift, torch.zeros(4, 3, 5))


def test_a_variable_reaches_only_its_own_layer():
    weights, biases = bank(3, (1, 6, 4))
    u = torch.randn(5, 3, 1, requires_grad=True)
    scale, shift = ops.str_tfm(u, weights, biases)
    (grad,) = torch.autograd.grad((scale[:, 1].sum(), shift[:, 1].sum()), u)
    assert grad[:, 1].abs().min() > 0 and torch.equal(grad[:, [0, 2]], torch.zeros(5, 2, 1))


def test_half_inputs_return_half_and_mixed_return_float():
    weights, biases = bank(2, (1, 4, 6))
    u = torch.randn(3, 2, 1)
    low = ops.str_tfm(u.bfloat16(), [w.bfloat16() for w in weights], [b.bfloat16() for b in biases])
    mixed = ops.str_tfm(u.bfloat16(), weights, biases)
    assert low[0].dtype == torch.bfloat16 and mixed[0].dtype == torch.float32


def test_sizes_beyond_a_gpu_kernel_are_refused_by_it_alone():
    weights, biases = bank(2, (1, *([4] * 17), 6))
    tensors = (torch.ones(3, 2, 1), *weights, *biases)
    for backend, layers in (("triton", 8), ("cuda", 16)):
        assert f"at most {layers} layers" in SPEC.refuses(backend, tensors)
    assert SPEC.refuses("cpp", tensors) is None
    few = (torch.ones(3, 2, 1), *weights[:3], *biases[:3])
    assert SPEC.refuses("triton", few) is None and SPEC.refuses("cuda", few) is None
    assert ops.str_tfm(tensors[0], weights, biases)[0].shape == (3, 2, 3)


W, B = bank(2, (1, 4, 6))
U = torch.ones(3, 2, 1)


@pytest.mark.parametrize(
    "args,kwargs,error,words",
    [
        ((U[:, 0], W, B), {}, ValueError, r"u must be \(N, d, k\), got shape \(3, 1\)"),
        ((U, W, B[:1]), {}, ValueError, "same length >= 1, got 2 and 1"),
        ((U, [], []), {}, ValueError, "same length >= 1"),
        ((torch.ones(3, 3, 1), W, B), {}, ValueError, r"weights\[0\] must be \(d, out, in\) with d = 3"),
        ((torch.ones(3, 2, 2), W, B), {}, ValueError, "in = 2"),
        ((U, W, [B[0], B[1][:, :5]]), {}, ValueError, r"biases\[1\] must have shape \(d, out\) = \(2, 6\)"),
        ((U, W[:1], [B[0]]), {"scale_map": "log"}, ValueError, "scale_map must be one of .* got 'log'"),
        ((U, W, B), {"activation": "identity"}, ValueError, "activation must be one of"),
        ((U, [W[0], W[1][:, :5]], [B[0], B[1][:, :5]]), {}, ValueError, "2C outputs .* got 5"),
        ((U.long(), W, B), {}, TypeError, "u must be float32"),
    ],
)
def test_bad_arguments(args, kwargs, error, words):
    with pytest.raises(error, match=words):
        ops.str_tfm(*args, **kwargs)
