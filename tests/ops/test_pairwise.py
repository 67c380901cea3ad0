"""mmd, mmd_dimwise and hsic: exact numbers on every backend, identities, cases by hand, errors a person can act on."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strucfast as sf
from strucfast import _native, ops, reference

GOLDEN = json.loads((Path(__file__).parents[1] / "data/divergences.json").read_text())["cases"]
BACKENDS = ["reference", *(["cpp"] if _native.missing("cpu") is None else [])]
BACKENDS += ["triton"] if _native.missing("triton") is None else []
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

on_every_backend = pytest.mark.parametrize("backend", BACKENDS)
both_dtypes = pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)


def cases(kind):
    return [pytest.param(c, id=c["name"]) for c in GOLDEN if c["kind"] == kind]


def tensor(values, dtype):
    return torch.tensor(values, dtype=torch.float64, device=DEVICE).to(dtype).requires_grad_()


def check(found, expected):
    """The golden file says 1e-5 for float32; the kernels keep a fortieth of it."""
    expected = torch.tensor(expected, dtype=torch.float64).reshape(found.shape)
    rtol, atol = (1e-11, 1e-13) if found.dtype == torch.float64 else (0.0, 2.5e-7)
    torch.testing.assert_close(found.detach().double().cpu(), expected, rtol=rtol, atol=atol)


def points(n, d, seed=0, dtype=torch.float32):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@on_every_backend
@both_dtypes
@pytest.mark.parametrize("case", cases("mmd_u"))
def test_golden_mmd(case, backend, dtype):
    inputs, expected = case["inputs"], case["expected"]
    x, y = tensor(inputs["x"], dtype), tensor(inputs["y"], dtype)
    with sf.use_backend(backend):
        value = ops.mmd(x, y, kernel=inputs["kernel"], bandwidth=inputs["param"])
        (dx,) = torch.autograd.grad(value, x)
    check(value, expected["mmd"])
    if "grad_x" in expected:
        check(dx, expected["grad_x"])


@on_every_backend
@both_dtypes
@pytest.mark.parametrize("case", cases("mmd_dim"))
def test_golden_mmd_dimwise(case, backend, dtype):
    x, y = tensor(case["inputs"]["x"], dtype), tensor(case["inputs"]["y"], dtype)
    with sf.use_backend(backend):
        value = ops.mmd_dimwise(x, y)
        (dy,) = torch.autograd.grad(value.sum(), y)
    assert value.shape == x.shape[1:]
    # 3 coordinates of 6 kernels each.
    limit = 1e-12 if dtype == torch.float64 else 2e-6
    assert abs(float(value.sum()) - case["expected"]["mmd"]) <= limit
    check(dy, case["expected"]["grad_y"])


@on_every_backend
@both_dtypes
@pytest.mark.parametrize("case", cases("hsic"))
def test_golden_hsic(case, backend, dtype):
    inputs = case["inputs"]
    x, y = tensor(inputs["x"], dtype), tensor(inputs["y"], dtype)
    widths = {"bandwidth_x": inputs["sigma_x"], "bandwidth_y": inputs["sigma_y"]}
    with sf.use_backend(backend):
        for unbiased, name in ((False, "hsic_biased"), (True, "hsic_unbiased")):
            check(ops.hsic(x, y, unbiased=unbiased, **widths), case["expected"][name])


@on_every_backend
@pytest.mark.parametrize("shift", (0.0, 0.5, 1.0, 3.0))
def test_two_points_and_the_same_shifted_by_hand(backend, shift):
    x = torch.tensor([[0.0], [1.0]], device=DEVICE)

    def k(distance):
        return 1.0 / (1.0 + distance**2)

    across = 2 * k(shift) + k(shift + 1) + k(shift - 1)
    with sf.use_backend(backend):
        unbiased = ops.mmd(x, x + shift, kernel="imq", bandwidth=1.0)
        biased = ops.mmd(x, x + shift, kernel="imq", bandwidth=1.0, unbiased=False)
    assert float(unbiased) == pytest.approx(k(1) + k(1) - across / 2, abs=1e-7)
    assert float(biased) == pytest.approx(1 + k(1) - across / 2, abs=1e-7)


@on_every_backend
@pytest.mark.parametrize("kernel", reference.pairwise.KERNELS)
@pytest.mark.parametrize("unbiased", (True, False))
def test_hsic_of_a_constant_is_exactly_zero(backend, kernel, unbiased):
    x, y = points(37, 3), torch.full((37, 2), 0.3, device=DEVICE)
    with sf.use_backend(backend):
        for pair in ((x, y), (y, x)):
            found = ops.hsic(*pair, kernel=kernel, unbiased=unbiased)
            assert abs(float(found)) <= (0.0 if backend == "cpp" else 1e-7)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(4, 70), d=st.integers(1, 5), e=st.integers(1, 5), unbiased=st.booleans(), seed=st.integers(0, 99))
def test_hsic_is_symmetric_and_the_trace_formula(n, d, e, unbiased, seed):
    x, y = points(n, d, seed, torch.float64), points(n, e, seed + 1, torch.float64)
    options = {"bandwidth_x": 1.5, "bandwidth_y": 0.8, "unbiased": unbiased}
    found = ops.hsic(x, y, **options)
    swapped = ops.hsic(y, x, bandwidth_x=0.8, bandwidth_y=1.5, unbiased=unbiased)
    torch.testing.assert_close(found, swapped, rtol=1e-10, atol=1e-13)
    k, m = (torch.exp(-torch.cdist(t, t) ** 2 / (2 * b * b)) for t, b in ((x, 1.5), (y, 0.8)))
    if unbiased:
        k, m = k.fill_diagonal_(0), m.fill_diagonal_(0)
        one = torch.ones(n, dtype=torch.float64, device=DEVICE)
        inner = one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
        expected = (torch.trace(k @ m) + inner) / (n * (n - 3))
    else:
        h = torch.eye(n, dtype=torch.float64, device=DEVICE) - 1.0 / n
        expected = torch.trace(k @ h @ m @ h) / (n * n)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 70), m=st.integers(2, 70), d=st.integers(1, 6), seed=st.integers(0, 99))
def test_order_of_points_place_and_roles_do_not_matter(n, m, d, seed):
    # On a grid, so that a translation changes no difference.
    x = (points(n, d, seed) * 8).round() / 8
    y = (points(m, d, seed + 1) * 8).round() / 8
    found = ops.mmd(x, y, bandwidth=1.5)
    for other in (ops.mmd(x.flip(0), y.roll(1, 0), bandwidth=1.5), ops.mmd(y, x, bandwidth=1.5)):
        torch.testing.assert_close(other, found, rtol=0, atol=5e-7)
    assert torch.equal(ops.mmd(x + 64, y + 64, bandwidth=1.5), found)


@pytest.mark.parametrize("kernel", reference.pairwise.KERNELS)
def test_bandwidths_and_coordinates_add_up(kernel):
    x, y = points(45, 4, 1, torch.float64), points(33, 4, 2, torch.float64) + 0.3
    options = {"kernel": kernel, "unbiased": True}
    single = [ops.mmd(x, y, bandwidth=b, **options) for b in (0.5, 1.0, 4.0)]
    torch.testing.assert_close(ops.mmd(x, y, bandwidth=(0.5, 1.0, 4.0), **options), sum(single))
    columns = [ops.mmd(x[:, d : d + 1], y[:, d : d + 1], bandwidth=(0.5, 4), **options) for d in range(4)]
    torch.testing.assert_close(ops.mmd_dimwise(x, y, bandwidth=[0.5, 4], **options), torch.stack(columns))


@pytest.mark.parametrize("statistic", ("mmd", "mmd_dimwise", "hsic", "hsic unbiased"))
def test_small_differences_survive_float32(statistic):
    """Equal or independent distributions leave 1/N of sums of N^2 terms; float32 must not drown it."""
    x, y = points(1500, 4, 1), points(1500, 4, 2)
    name, _, unbiased = statistic.partition(" ")
    options = {"unbiased": bool(unbiased)} if name == "hsic" else {}
    with torch.no_grad():
        found = getattr(ops, name)(x, y, **options).double()
        exact = getattr(ops, name)(x.double(), y.double(), **options)
    assert float((found - exact).abs().max()) <= 2e-8 * (6 if name == "mmd_dimwise" else 1)
    assert float(exact.abs().max()) < 2e-2


def test_memory_does_not_grow_with_the_pairs():
    if _native.missing("cpu") is not None:
        pytest.skip(f"the reference holds the matrices; build the CPU half: {_native.missing('cpu')}")
    x, y = (points(2048, 4, s).cpu().requires_grad_() for s in (1, 2))
    for function in (ops.mmd, ops.mmd_dimwise, ops.hsic):

        def call(function=function):
            return torch.autograd.grad(function(x, y).sum(), (x, y))

        with sf.use_backend("cpp"), torch.profiler.profile(profile_memory=True) as profile:
            call()
        allocated = sum(max(0, e.self_cpu_memory_usage) for e in profile.events())
        # 4096 points of 4 float32 are 64 KiB; one matrix of all pairs is 16 MiB.
        assert 32 * 1024 < allocated < 4 << 20, f"{function.__name__}: {allocated}"


@on_every_backend
def test_far_points_and_equal_points(backend):
    x = torch.tensor([[0.0, 0.0], [1e9, 0.0], [1e9, 0.0]], device=DEVICE, requires_grad=True)
    y = torch.tensor([[-1e9, 1.0], [0.0, 1e6]], device=DEVICE)
    with sf.use_backend(backend):
        for kernel in reference.pairwise.KERNELS:
            value = ops.mmd(x, y, kernel=kernel, bandwidth=2.0)
            (dx,) = torch.autograd.grad(value, x)
            # Only the pair of equal points counts: once of the three pairs.
            assert float(value) == pytest.approx(1 / 3, abs=1e-6)
            assert float(dx.abs().max()) <= 1e-9


def test_nan_is_not_hidden():
    x, y = points(40, 3), points(40, 3, 1)
    x[7, 1] = float("nan")
    for function in (ops.mmd, ops.hsic):
        assert math.isnan(float(function(x, y)))
    assert torch.isnan(ops.mmd_dimwise(x, y)).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_types_are_computed_in_float32(dtype):
    x, y = points(9, 3).to(dtype).requires_grad_(), points(9, 3, 1).to(dtype)
    for name in ("mmd", "mmd_dimwise", "hsic"):
        value = getattr(ops, name)(x, y)
        (dx,) = torch.autograd.grad(value.sum(), x)
        assert value.dtype == torch.float32 and dx.dtype == dtype
        torch.testing.assert_close(value, getattr(ops, name)(x.float(), y.float()))


def test_a_hsic_step_makes_codes_independent():
    """The gradient points the right way: descending it lowers the dependence."""
    x = points(200, 2)
    y = (x[:, :1] ** 2 + 0.1 * points(200, 1, 3)).requires_grad_()
    start = float(ops.hsic(x, y))
    for _ in range(20):
        (dy,) = torch.autograd.grad(ops.hsic(x, y), y)
        y = (y - 200 * dy).detach().requires_grad_()
    assert float(ops.hsic(x, y)) < 0.5 * start


X = torch.ones(5, 3)


@pytest.mark.parametrize(
    "function,arguments,options,error,words",
    [
        ("mmd", (X, torch.ones(5, 2)), {}, ValueError, r"same number of dims, got shapes \(5, 3\) and \(5, 2\)"),
        ("mmd", (torch.ones(5), X), {}, ValueError, r"x must be \(N, D\) with D >= 1, got shape \(5,\)"),
        ("mmd", (X, torch.ones(4, 0)), {}, ValueError, r"y must be \(N, D\).*\(4, 0\)"),
        ("mmd", (X, X[:1]), {}, ValueError, "y must have at least 2 points, got 1"),
        ("mmd", (X[:0], X), {"unbiased": False}, ValueError, "x must have at least 1 points, got 0"),
        ("mmd", (X, X), {"kernel": "gauss"}, ValueError, r"kernel must be one of \('rbf', 'imq'\), got 'gauss'"),
        ("mmd", (X, X), {"bandwidth": 0.0}, ValueError, "bandwidth must be positive and finite.*got 0.0"),
        ("mmd", (X, X), {"bandwidth": (1.0, -2.0)}, ValueError, "bandwidth must be positive"),
        ("mmd", (X, X), {"bandwidth": ()}, ValueError, "one or several"),
        ("mmd", (X, X), {"bandwidth": float("nan")}, ValueError, "got nan"),
        ("mmd", (X, X), {"bandwidth": float("inf")}, ValueError, "got inf"),
        ("mmd", (X, X), {"bandwidth": torch.ones(2)}, TypeError, "bandwidth must be a number or a sequence"),
        ("mmd", (X, X), {"bandwidth": ("1",)}, TypeError, "bandwidth must be a number or a sequence"),
        ("mmd", (X.int(), X), {}, TypeError, "mmd: x must be float32.*int32"),
        ("mmd", (X, [1.0]), {}, TypeError, "y must be a torch.Tensor, got list"),
        ("mmd", (X, X.to("meta")), {}, ValueError, "y must be on x's device cpu, got meta"),
        ("mmd_dimwise", (X, X[:1]), {}, ValueError, "mmd_dimwise: y must have at least 2 points"),
        ("mmd_dimwise", (X, X), {"bandwidth": -1}, ValueError, "mmd_dimwise: bandwidth"),
        ("hsic", (X, X[:4]), {}, ValueError, r"same number of points, got shapes \(5, 3\) and \(4, 3\)"),
        ("hsic", (X[:3], X[:3]), {"unbiased": True}, ValueError, "x must have at least 4 points, got 3"),
        ("hsic", (X, X), {"bandwidth_x": 0}, ValueError, "bandwidth_x must be positive"),
        ("hsic", (X, X), {"bandwidth_y": None}, TypeError, "bandwidth_y must be a number"),
        ("hsic", (X, X.bool()), {}, TypeError, "hsic: y must be float32.*bool"),
    ],
)
def test_bad_arguments(function, arguments, options, error, words):
    with pytest.raises(error, match=words):
        getattr(ops, function)(*arguments, **options)
