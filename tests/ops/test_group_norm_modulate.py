"""group_norm_modulate: what normalisation means, and errors a person can act on."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from strucfast import ops


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 4),
    groups=st.integers(1, 4),
    width=st.integers(1, 5),
    s=st.integers(2, 50),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_output_has_zero_mean_and_unit_variance(n, groups, width, s, channels_last, seed):
    x = torch.randn(n, groups * width, s, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    y = ops.group_norm_modulate(x, groups, activation="identity", eps=0.0).reshape(n, groups, -1)
    torch.testing.assert_close(y.mean(2), torch.zeros(n, groups, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(y.var(2, unbiased=False), torch.ones(n, groups, dtype=torch.float64))


@settings(max_examples=20, deadline=None)
@given(
    groups=st.integers(1, 3),
    s=st.integers(2, 30),
    offset=st.floats(-100, 100),
    factor=st.floats(0.5, 4),
    seed=st.integers(0, 2**31),
)
def test_invariant_to_offset_and_scale_of_the_input(groups, s, offset, factor, seed):
    x = torch.randn(2, groups * 2, s, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = ops.group_norm_modulate(x, groups, eps=0.0)
    torch.testing.assert_close(ops.group_norm_modulate(factor * x + offset, groups, eps=0.0), y, rtol=1e-6, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(groups=st.integers(1, 3), s=st.integers(2, 30), seed=st.integers(0, 2**31))
def test_input_gradient_is_orthogonal_to_what_normalisation_removes(groups, s, seed):
    """sum dx = 0 and sum dx xhat = 0 within each group (up to eps)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, groups * 2, s, dtype=torch.float64, generator=generator).requires_grad_()
    y = ops.group_norm_modulate(x, groups, eps=0.0)
    (dx,) = torch.autograd.grad(y, x, torch.randn(y.shape, dtype=torch.float64, generator=generator))
    dx, values = dx.reshape(2, groups, -1), x.detach().reshape(2, groups, -1)
    xhat = values - values.mean(2, keepdim=True)
    zero = torch.zeros(2, groups, dtype=torch.float64)
    torch.testing.assert_close(dx.sum(2), zero, atol=1e-7, rtol=0)
    torch.testing.assert_close((dx * xhat).sum(2), zero, atol=1e-7, rtol=0)


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_equals_the_torch_layers_it_replaces(layout):
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 16)
    torch.nn.init.normal_(norm.weight)
    x, scale, shift = torch.randn(3, 16, 9, 5), torch.randn(3, 16), torch.randn(3, 16)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    expected = F.mish(norm(x)) * scale[..., None, None] + shift[..., None, None]
    found = ops.group_norm_modulate(x, 4, norm.weight, norm.bias, scale, shift)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.stride() == x.stride()


def test_a_big_offset_loses_nothing():
    """E[x^2] - m^2 in float32 would return noise here: mean -500, deviation 0.1."""
    x = (torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0)) * 0.125 - 500.0).round(decimals=3)
    exact = ops.group_norm_modulate(x.double(), 2, activation="identity")
    for layout in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
        found = ops.group_norm_modulate(layout, 2, activation="identity")
        assert float((found.double() - exact).abs().max()) < 3e-4


def test_a_constant_group_is_its_bias():
    x = torch.full((2, 4, 9), 3.5)
    y = ops.group_norm_modulate(x, 2, torch.full((4,), 2.0), torch.full((4,), 0.25), activation="identity")
    assert torch.equal(y, torch.full_like(y, 0.25))


def test_nan_stays_in_its_group():
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0] = float("nan")
    y = ops.group_norm_modulate(x, 2)
    assert torch.isnan(y[0, :2]).all() and torch.isfinite(y[0, 2:]).all() and torch.isfinite(y[1]).all()


X = torch.ones(2, 6, 4)


@pytest.mark.parametrize(
    "args,kwargs,error,words",
    [
        ((X, 4), {}, ValueError, "num_groups must be positive and divide the 6 channels of x, got 4"),
        ((X, 0), {}, ValueError, "num_groups"),
        ((X, 2.0), {}, TypeError, "num_groups must be an int, got float"),
        ((X, 2, torch.ones(5)), {}, ValueError, r"weight must have shape \(C,\) = \(6,\), got \(5,\)"),
        ((X, 2, None, torch.ones(2, 6)), {}, ValueError, "bias must have shape"),
        ((X, 2), {"scale": torch.ones(2, 5)}, ValueError, "scale must have shape"),
        ((X, 2), {"shift": torch.ones(1, 6)}, ValueError, "shift must have shape"),
        ((X, 2), {"activation": "gelu"}, ValueError, "activation must be one of .*mish.* got 'gelu'"),
        ((X, 2), {"eps": -1.0}, ValueError, "eps must be finite and >= 0"),
        ((X, 2), {"eps": float("nan")}, ValueError, "eps must be finite"),
        ((X.long(), 2), {}, TypeError, "x must be float32"),
    ],
)
def test_bad_arguments(args, kwargs, error, words):
    with pytest.raises(error, match=words):
        ops.group_norm_modulate(*args, **kwargs)
