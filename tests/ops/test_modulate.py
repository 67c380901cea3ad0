"""modulate: identities that hold for any input, and errors a person can act on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strucfast import _native, ops, reference, use_backend

sizes = st.integers(1, 7)


@settings(max_examples=30, deadline=None)
@given(n=sizes, c=sizes, spatial=st.lists(sizes, max_size=3), channels_last=st.booleans(), seed=st.integers(0, 2**31))
def test_scale_one_shift_zero_is_the_identity(n, c, spatial, channels_last, seed):
    x = torch.randn(n, c, *spatial, generator=torch.Generator().manual_seed(seed))
    if channels_last and spatial:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    y = ops.modulate(x, torch.ones(n, c), torch.zeros(n, c))
    assert torch.equal(y, x)
    assert y.stride() == x.stride()


@settings(max_examples=20, deadline=None)
@given(n=sizes, c=sizes, s=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_two_modulations_compose(n, c, s, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, s, dtype=torch.float64, generator=generator)
    a, b, p, q = torch.randn(4, n, c, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(ops.modulate(ops.modulate(x, a, b), p, q), ops.modulate(x, a * p, b * p + q))


def test_nan_and_infinity_pass_through():
    x = torch.tensor([[[float("nan"), float("inf"), -float("inf"), 1.0]]])
    y = ops.modulate(x, torch.full((1, 1), 2.0), torch.ones(1, 1))
    assert torch.isnan(y[0, 0, 0]) and y[0, 0, 1:].tolist() == [float("inf"), -float("inf"), 3.0]


@pytest.mark.parametrize(
    "arguments,error,words",
    [
        (
            (torch.ones(2, 3, 4), torch.ones(2, 4), torch.ones(2, 3)),
            ValueError,
            r"scale must have shape \(N, C\) = \(2, 3\)",
        ),
        ((torch.ones(2, 3, 4), torch.ones(2, 3), torch.ones(3)), ValueError, r"shift .* got \(3,\)"),
        ((torch.ones(3), torch.ones(3), torch.ones(3)), ValueError, r"x must be \(N, C, \*S\)"),
        (
            (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3), torch.ones(2, 3)),
            TypeError,
            "x must be float32.*int64",
        ),
        ((torch.ones(2, 3), torch.ones(2, 3, dtype=torch.uint8), torch.ones(2, 3)), TypeError, "scale.*uint8"),
        ((torch.ones(2, 3), 2.0, torch.ones(2, 3)), TypeError, "scale must be a torch.Tensor, got float"),
        (
            (torch.ones(2, 3), torch.ones(2, 3, device="meta"), torch.ones(2, 3)),
            ValueError,
            "scale must be on x's device cpu",
        ),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.modulate(*arguments)


def test_per_pixel_shift_is_not_kept_for_the_backward():
    """Its value is never read again, so it must not hold memory until the backward."""
    x = torch.randn(2, 3, 4, requires_grad=True)
    shift = torch.randn(2, 3, 4)
    y = ops.modulate(x, torch.ones(2, 3), shift)
    if _native.missing("cpu") is not None:
        pytest.skip(f"the reference decides what autograd keeps; build the CPU half: {_native.missing('cpu')}")
    saved = [t for t in y.grad_fn.saved_tensors if t is not None]
    assert x.data_ptr() in [t.data_ptr() for t in saved]
    assert shift.data_ptr() not in [t.data_ptr() for t in saved]


def _one_pixel(*shape):
    generator = torch.Generator().manual_seed(3)
    x, scale, shift = (torch.randn(n, generator=generator) for n in (shape, shape[:2], shape[:2]))
    return [t.requires_grad_() for t in (x, scale, shift)]


def _value_and_gradients(function, tensors):
    y = function(*tensors)
    return y, *torch.autograd.grad(y, tensors, torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape))


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (40, 130, 1, 1), (1, 9, 1), (9, 1, 1), (5, 0, 1)])
@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_one_pixel_equals_the_reference(shape, backend):
    """The samples are one long row there, and (N, C) features go to ATen."""
    if backend == "cpp" and _native.missing("cpu") is not None:
        pytest.skip(f"build the CPU half: {_native.missing('cpu')}")
    tensors = _one_pixel(*shape)
    with use_backend(backend):
        ours = _value_and_gradients(ops.modulate, tensors)
    for a, b in zip(ours, _value_and_gradients(reference.modulate, tensors)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1, 1)])
@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_one_pixel_with_parameters_that_do_not_lie_densely(shape, backend):
    """Slices of a bank (N, d, C), expanded and transposed ones: values, gradients and x's own layout."""
    if backend == "cpp" and _native.missing("cpu") is not None:
        pytest.skip(f"build the CPU half: {_native.missing('cpu')}")
    x = _one_pixel(*shape)[0]
    bank = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(4))
    for scale, shift in (
        (bank[:, 1], bank[:, 2]),
        (bank[:1, 0].expand(4, 6), bank[:, 0]),
        (bank[:, 0].t().contiguous().t(), bank[:, 1]),
        (bank[:, 0].contiguous(), bank[:, 1].t().contiguous().t()),
    ):
        tensors = [x, scale.detach().requires_grad_(), shift.detach().requires_grad_()]
        with use_backend(backend):
            ours = _value_and_gradients(ops.modulate, tensors)
        for a, b in zip(ours, _value_and_gradients(reference.modulate, tensors)):
            torch.testing.assert_close(a, b)
        assert ours[0].is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_features_of_one_pixel_are_computed_in_float32(dtype):
    x, scale, shift = (t.detach() for t in _one_pixel(7, 11))
    exact = reference.modulate(x.to(dtype), scale, shift)
    ours = ops.modulate(x.to(dtype), scale, shift)
    assert ours.dtype is dtype
    # One rounding of a float32 result: half a unit in the last place, the reference's own half beside it.
    torch.testing.assert_close(ours, exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 64, 32, 32), (2, 48, 40, 24)])
def test_sums_over_many_tiles_do_not_depend_on_the_threads(shape):
    """In channels-last memory the height of a tile follows from the number of threads."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(memory_format=torch.channels_last)
    tensors = [t.requires_grad_() for t in (x, *torch.randn(2, *shape[:2], generator=generator))]
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(_value_and_gradients(ops.modulate, tensors))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others))


def test_which_features_of_one_pixel_go_to_aten():
    x, scale, shift = torch.randn(3, 4, 6)
    assert torch.equal(ops.modulate(x, scale, shift), torch.addcmul(shift, x, scale))
    tensors = [t.clone().requires_grad_() for t in (x, scale, shift)]
    assert torch.equal(ops.modulate(*tensors), x * scale + shift)
    assert "Add" in type(ops.modulate(*tensors).grad_fn).__name__
    if _native.missing("cpu") is not None:
        pytest.skip(f"build the CPU half: {_native.missing('cpu')}")
    for other in (tensors[0][..., None], tensors[0].bfloat16()):
        assert "Fused" in type(ops.modulate(other, *tensors[1:]).grad_fn).__name__
    with use_backend("cpp"):
        assert "Fused" in type(ops.modulate(*tensors).grad_fn).__name__
