"""adain: what adaptive instance normalisation means, and errors a person can act on."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from strucfast import ops

LAYOUTS = pytest.mark.parametrize("channels_last", [False, True])


def laid_out(x, channels_last):
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x.contiguous()


def random(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 4),
    c=st.integers(1, 20),
    s=st.integers(2, 50),
    eps=st.sampled_from((0.0, 1e-5, 0.5)),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_output_has_mean_shift_and_the_deviation_of_the_scale(n, c, s, eps, channels_last, seed):
    """mean = beta and standard deviation = |gamma| sqrt(var / (var + eps)) in every slice."""
    x = laid_out(random(seed, n, c, s), channels_last)
    scale, shift = random(seed + 1, n, c), random(seed + 2, n, c)
    y = ops.adain(x, scale, shift, eps=eps)
    var = x.var(2, unbiased=False)
    torch.testing.assert_close(y.mean(2), shift, atol=1e-9, rtol=0)
    torch.testing.assert_close(y.var(2, unbiased=False).sqrt(), scale.abs() * (var / (var + eps)).sqrt())


@settings(max_examples=20, deadline=None)
@given(
    c=st.integers(1, 20),
    s=st.integers(2, 60),
    per_pixel=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_input_gradient_is_orthogonal_to_what_normalisation_removes(c, s, per_pixel, channels_last, seed):
    """sum_s dx = 0 and, for eps = 0, sum_s dx xhat = 0."""
    x = laid_out(random(seed, 2, c, s), channels_last).requires_grad_()
    shape = (2, c, s) if per_pixel else (2, c)
    y = ops.adain(x, random(seed + 1, *shape), random(seed + 2, *shape), eps=0.0)
    (dx,) = torch.autograd.grad(y, x, random(seed + 3, 2, c, s))
    xhat = x.detach() - x.detach().mean(2, keepdim=True)
    zero = torch.zeros(2, c, dtype=torch.float64)
    torch.testing.assert_close(dx.sum(2), zero, atol=1e-7, rtol=0)
    torch.testing.assert_close((dx * xhat).sum(2), zero, atol=1e-7, rtol=0)


@settings(max_examples=20, deadline=None)
@given(s=st.integers(2, 30), offset=st.floats(-100, 100), factor=st.floats(0.5, 4), seed=st.integers(0, 2**31))
def test_invariant_to_offset_and_scale_of_the_input(s, offset, factor, seed):
    x, one, zero = random(seed, 2, 3, s), torch.ones(2, 3).double(), torch.zeros(2, 3).double()
    y = ops.adain(x, one, zero, eps=0.0)
    torch.testing.assert_close(ops.adain(factor * x + offset, one, zero, eps=0.0), y, rtol=1e-6, atol=1e-8)


@LAYOUTS
def test_equals_the_torch_layer_it_replaces(channels_last):
    shapes = ((3, 18, 9, 5), (3, 18), (3, 18))
    x, scale, shift = (random(i, *shape, dtype=torch.float32) for i, shape in enumerate(shapes))
    x = laid_out(x, channels_last)
    expected = F.instance_norm(x) * scale[..., None, None] + shift[..., None, None]
    found = ops.adain(x, scale, shift)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.stride() == x.stride()


@LAYOUTS
@pytest.mark.parametrize("pixels", [16, 81, 2500])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_a_big_offset_loses_nothing(pixels, per_pixel, channels_last):
    """Mean -500, deviation 0.125: float32 values and gradients to a few units in the last place, not to 1e-4."""
    x = (random(0, 2, 19, pixels) * 0.125 - 500.0).mul(1024).round().div(1024)
    shape = x.shape if per_pixel else x.shape[:2]
    tensors = [x, random(1, *shape), random(2, *shape)]
    grad = random(3, *x.shape)
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [laid_out(t.to(dtype), channels_last and t.dim() > 2).requires_grad_() for t in tensors]
        y = ops.adain(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))])
    for name, found, exact in zip(("y", "dx", "dscale", "dshift"), *results):
        error = float((found.double() - exact).abs().max()) / float(exact.abs().max())
        assert error < 2e-6, f"{name}: {error}"


@LAYOUTS
def test_a_constant_channel_is_its_shift(channels_last):
    x = laid_out(torch.full((2, 3, 9), 3.7), channels_last).requires_grad_()
    scale, shift, g = (random(i, *s, dtype=torch.float32) for i, s in enumerate(((2, 3), (2, 3), (2, 3, 9))))
    y = ops.adain(x, scale, shift)
    assert torch.equal(y, shift[..., None].expand(2, 3, 9))
    (dx,) = torch.autograd.grad(y, x, g)
    expected = scale[..., None] * 1e-5**-0.5 * (g - g.mean(2, keepdim=True))
    torch.testing.assert_close(dx, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 1, 1)])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_one_pixel_is_its_shift_and_has_no_gradient(shape, per_pixel):
    x = random(0, *shape, dtype=torch.float32).requires_grad_()
    scale, shift = (random(i, *(shape if per_pixel else shape[:2]), dtype=torch.float32) for i in (1, 2))
    y = ops.adain(x, scale, shift)
    assert torch.equal(y.reshape(3, 5), shift.reshape(3, 5))
    (dx,) = torch.autograd.grad(y, x, random(3, *shape, dtype=torch.float32))
    assert torch.equal(dx, torch.zeros(shape))


@LAYOUTS
def test_no_pixels(channels_last):
    tensors = [laid_out(torch.zeros(2, 3, 0), channels_last), torch.ones(2, 3), torch.ones(2, 3)]
    leaves = [t.requires_grad_() for t in tensors]
    y = ops.adain(*leaves)
    assert y.shape == (2, 3, 0)
    for grad, leaf in zip(torch.autograd.grad(y, leaves, torch.zeros_like(y)), leaves):
        assert torch.equal(grad, torch.zeros_like(leaf))


@LAYOUTS
def test_nan_stays_in_its_slice(channels_last):
    x = laid_out(random(0, 2, 20, 17, dtype=torch.float32), channels_last)
    x[0, 3, 5] = float("nan")
    leaves = [t.requires_grad_() for t in (x, torch.ones(2, 20), torch.zeros(2, 20))]
    y = ops.adain(*leaves)
    dx, dscale, dshift = torch.autograd.grad(y, leaves, torch.ones_like(y))
    bad = torch.zeros(2, 20, dtype=torch.bool)
    bad[0, 3] = True
    for value in (y, dx):
        assert torch.equal(torch.isnan(value).all(2), bad) and torch.equal(torch.isnan(value).any(2), bad)
    assert torch.equal(torch.isnan(dscale), bad) and torch.isfinite(dshift).all()


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_large_results_that_are_stored_past_the_caches(dtype, channels_last):
    """More than 32 MiB of results, in rows whose ends do not meet cache lines, give what parts of them give."""
    channels, pixels = 67, 9001
    n = -(-(34 << 20) // (channels * pixels * dtype.itemsize))
    x, grad = (laid_out(random(i, n, channels, pixels, dtype=dtype), channels_last) for i in (0, 1))
    scale, shift = random(2, n, channels, dtype=dtype), random(3, n, channels, dtype=dtype)
    results = []
    for part in (slice(None), slice(0, 1), slice(n - 1, n)):
        leaves = [t[part].requires_grad_() for t in (x, scale, shift)]
        y = ops.adain(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, grad[part])])
    for whole, first, last in zip(*results):
        assert torch.equal(whole[:1], first) and torch.equal(whole[-1:], last)
        assert torch.isfinite(whole).all()


def test_tiny_variance_and_eps():
    """Deviations of 1e-15 with eps 1e-30: rstd is 7e14, and its cube would overflow."""
    x = (random(0, 1, 2, 40, dtype=torch.float32) * 1e-15).requires_grad_()
    one, zero = torch.ones(1, 2), torch.zeros(1, 2)
    g = random(1, 1, 2, 40, dtype=torch.float32)
    y = ops.adain(x, one, zero, eps=1e-30)
    (dx,) = torch.autograd.grad(y, x, g)
    exact = x.detach().double().requires_grad_()
    z = ops.adain(exact, one.double(), zero.double(), eps=1e-30)
    (want,) = torch.autograd.grad(z, exact, g.double())
    torch.testing.assert_close(y.double(), z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx.double(), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


X = torch.ones(2, 6, 4)
P = torch.ones(2, 6)


@pytest.mark.parametrize(
    "args,kwargs,error,words",
    [
        ((X, torch.ones(2, 5), P), {}, ValueError, r"scale must have shape \(N, C\) = \(2, 6\) .* \(2, 5\)"),
        ((X, P, torch.ones(1, 6)), {}, ValueError, "shift must have shape"),
        ((X, P, torch.ones(2, 6, 5)), {}, ValueError, "shift must have shape"),
        ((X[0, 0], P, P), {}, ValueError, r"x must be \(N, C, \*S\) with 0 to 3 spatial dims"),
        ((torch.ones(1, 1, 1, 1, 1, 1), P, P), {}, ValueError, "x must be"),
        ((X.long(), P, P), {}, TypeError, "x must be float32"),
        ((X, 1.0, P), {}, TypeError, "scale must be a torch.Tensor, got float"),
        ((X, P.to("meta"), P), {}, ValueError, "scale must be on x's device cpu, got meta"),
        ((X, P, P), {"eps": -1.0}, ValueError, "eps must be finite and >= 0, got -1.0"),
        ((X, P, P), {"eps": float("inf")}, ValueError, "eps must be finite"),
        ((X, P, P), {"eps": float("nan")}, ValueError, "eps must be finite"),
    ],
)
def test_bad_arguments(args, kwargs, error, words):
    with pytest.raises(error, match=words):
        ops.adain(*args, **kwargs)
