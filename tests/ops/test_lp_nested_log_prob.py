"""lp_nested_log_prob beyond the contract: exact numbers, laws of the density, zeros and extremes, errors."""

import json
import math
from pathlib import Path

import pytest
import torch

import strucfast as sf
from strucfast import _native

DATA = json.loads((Path(__file__).parents[1] / "data/lpnested.json").read_text())
GOLDEN = [pytest.param(case, id=case["name"]) for case in DATA["cases"] if case["kind"] == "isa"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference", *(["cpp"] if _native.missing("cpu") is None and DEVICE == "cpu" else [])]
BACKENDS += ["triton"] if _native.missing("triton") is None else []

on_every_backend = pytest.mark.parametrize("backend", BACKENDS)
both_dtypes = pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)


def tensor(values, dtype=torch.float64):
    return torch.as_tensor(values, dtype=torch.float64).to(DEVICE, dtype)


def log_prob(backend, z, sizes, p0, p, scale):
    """The op on one backend; numbers become tensors of z's dtype."""
    p0, p, scale = (v if isinstance(v, torch.Tensor) else tensor(v, z.dtype) for v in (p0, p, scale))
    with sf.use_backend(backend):
        return sf.ops.lp_nested_log_prob(z, sizes, p0, p, scale)


def gradients(backend, z, sizes, p0, p, scale, upstream=None):
    leaves = [tensor(v, z.dtype).requires_grad_() for v in (z, p0, p, scale)]
    value = log_prob(backend, leaves[0], sizes, *leaves[1:])
    with sf.use_backend(backend):
        grads = torch.autograd.grad(value, leaves, torch.ones_like(value) if upstream is None else upstream)
    return value.detach(), grads


@on_every_backend
@both_dtypes
@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case, backend, dtype):
    """mpmath at 40 digits, within the tolerances that the file states."""
    inputs, expected = case["inputs"], {k: tensor(v) for k, v in case["expected"].items()}
    arguments = (tensor(inputs["z"], dtype), inputs["nk"], inputs["p0"], inputs["pk"], inputs["sk"])
    value, (dz, *_) = gradients(backend, *arguments)
    _, (_, *of_parameters) = gradients(backend, *arguments, tensor(inputs["upstream"], dtype))
    extreme = case["name"].startswith("scales")
    if dtype == torch.float64:
        rtol, atol, value_tolerance = 1e-12, 1e-12, 1e-12
    else:
        rtol, atol, value_tolerance = 5e-5 if extreme else 1e-5, 1e-37, 5e-6
    assert bool(((value - expected["logpdf"]).abs() <= value_tolerance * (1 + expected["logpdf"].abs())).all())
    if not (backend == "reference" and dtype == torch.float32 and extreme):
        # Autograd divides energies below 1e-40 by coordinates and so loses gradients; the kernels do not.
        torch.testing.assert_close(dz.double(), expected["grad_z"], rtol=rtol, atol=atol)
    for name, found in zip(("grad_p0", "grad_pk", "grad_sk"), of_parameters):
        torch.testing.assert_close(found.double(), expected[name], rtol=rtol, atol=max(1e-12, rtol * 1e-2))


@on_every_backend
def test_one_scale_for_all_gets_the_sum_of_the_gradients(backend):
    case = next(c.values[0] for c in GOLDEN if c.id == "paper_dsprites_5x4")
    inputs = case["inputs"]
    upstream = tensor(inputs["upstream"])
    arguments = (tensor(inputs["z"]), inputs["nk"], inputs["p0"], inputs["pk"], inputs["sk"][0])
    _, (*_, dscale) = gradients(backend, *arguments, upstream)
    torch.testing.assert_close(dscale, tensor(case["expected"]["grad_s_shared"]), rtol=1e-12, atol=1e-12)


@on_every_backend
@pytest.mark.parametrize(
    "sizes, p0, p, scale",
    [((2,), 2.1, [2.2], [1.0]), ((1, 1), 1.5, [3.0, 0.7], [0.5, 2.0]), ((2,), 1.0, [1.5], [1.25]),
     ((2,), 3.0, [1.0], [2.0])],
)  # fmt: skip
def test_integrates_to_one(sizes, p0, p, scale, backend):
    edges = torch.linspace(-30, 30, 1201, dtype=torch.float64)
    centres = (edges[1:] + edges[:-1]) / 2
    grid = torch.cartesian_prod(centres, centres).to(DEVICE)
    mass = log_prob(backend, grid, sizes, p0, p, scale).exp().sum() * (edges[1] - edges[0]) ** 2
    # The midpoint rule on a kinked density: second order in the step of 1/20.
    assert abs(float(mass) - 1) < 2e-3


@on_every_backend
@both_dtypes
def test_equals_the_normal_and_the_generalised_normal(backend, dtype):
    z = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(DEVICE, dtype)
    tolerance = {"rtol": 3e-6 if dtype == torch.float32 else 1e-12, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z.double()).sum(dim=1).to(dtype)
    torch.testing.assert_close(log_prob(backend, z, (4, 2, 1), 2.0, [2.0] * 3, 2.0), normal, **tolerance)
    p, scale = 1.3, 0.8
    constant = math.log(p / 2) - math.lgamma(1 / p) - math.log(scale) / p
    gennorm = (constant - z.double().abs() ** p / scale).sum(dim=1).to(dtype)
    torch.testing.assert_close(log_prob(backend, z, (3, 4), p, [p, p], scale), gennorm, **tolerance)


@on_every_backend
def test_symmetries(backend):
    z = torch.randn(33, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(DEVICE)
    sizes, p0, p, scale = (4, 3, 2), 1.7, [2.2, 0.8, 1.5], [1.0, 0.5, 2.0]
    value, (dz, *_) = gradients(backend, z, sizes, p0, p, scale)
    within = z[:, [2, 0, 3, 1, 6, 5, 4, 8, 7]] * tensor([1, -1, 1, 1, -1, 1, 1, 1, -1])
    torch.testing.assert_close(log_prob(backend, within, sizes, p0, p, scale), value)
    between = torch.cat([z[:, 7:], z[:, :4], z[:, 4:7]], dim=1)
    swapped = log_prob(backend, between, (2, 4, 3), p0, [p[2], p[0], p[1]], [scale[2], scale[0], scale[1]])
    torch.testing.assert_close(swapped, value)
    # Scaling: a unit of length c.
    c = 2.5
    scaled = log_prob(backend, c * z, sizes, p0, p, [s * c**p0 for s in scale])
    torch.testing.assert_close(scaled, value - 9 * math.log(c))
    # Euler: the energy is homogeneous of degree p0.
    energy = log_prob(backend, torch.zeros_like(z), sizes, p0, p, scale) - value
    torch.testing.assert_close((z * dz).sum(dim=1), -p0 * energy)


@on_every_backend
@both_dtypes
@pytest.mark.parametrize("p0", [0.75, 1.0, 2.1])
@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 2.25])
def test_zeros_have_a_zero_gradient(p, p0, backend, dtype):
    z = tensor([[0, 0, 0, 0], [0, 0, 1, 2], [1, -0.0, 0, 0.5], [3, 1, 0, 0]], dtype)
    value, (dz, dp0, dp, dscale) = gradients(backend, z, (2, 2), p0, [p, p], 1.25)
    assert bool((dz[z == 0] == 0).all()) and bool((dz[z != 0] != 0).all())
    assert all(bool(torch.isfinite(t).all()) for t in (value, dz, dp0, dp, dscale))


@on_every_backend
def test_energy_overflow_leaves_the_gradients(backend):
    z = torch.tensor([[1e20, -2e20, 0.0], [1.0, 1.0, 1.0]], device=DEVICE)
    upstream = torch.tensor([1.0, 1.0], device=DEVICE)
    value, (dz, *_) = gradients(backend, z, (2, 1), 2.125, [2.25, 2.0], 1.0, upstream)
    assert value.tolist()[0] == -math.inf and math.isfinite(value[1])
    _, (exact, *_) = gradients("reference", z.double(), (2, 1), 2.125, [2.25, 2.0], 1.0, upstream.double())
    if backend != "reference":
        torch.testing.assert_close(dz.double(), exact, rtol=5e-5, atol=0)
        # What overflows has no say where its upstream gradient is 0.
        _, (_, *parameters) = gradients(backend, z, (2, 1), 2.125, [2.25, 2.0], 1.0, 1 - upstream.new_tensor([1, 0]))
        assert all(bool(torch.isfinite(t).all()) for t in parameters)


@on_every_backend
def test_a_bad_row_stays_alone(backend):
    z = torch.randn(150, 6, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    arguments = ((4, 2), 2.1, [2.2, 1.8], 1.0)
    value, (dz, *_) = gradients(backend, z, *arguments)
    bad = z.clone()
    bad[3, 1] = math.nan
    found, (of_bad, *_) = gradients(backend, bad, *arguments)
    others = torch.arange(150, device=DEVICE) != 3
    assert math.isnan(found[3]) and math.isnan(of_bad[3, 1])
    # A kernel may go another way where one of its rows is out of the common range.
    torch.testing.assert_close(found[others], value[others], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(of_bad[others], dz[others], rtol=1e-5, atol=1e-5)
    assert bool(torch.isfinite(of_bad[3, 4:]).all())
    if backend != "reference":
        bad[3, 1] = math.inf
        assert log_prob(backend, bad, *arguments)[3] == -math.inf


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("magnitude", [1e-20, 1e-9, 5e-8, 1e-3, 1.0, 20.0, 31.0, 33.0, 1e4, 1e10])
@pytest.mark.parametrize("p0, p", [(2.1, 2.2), (0.6, 0.5), (3.9, 4.0), (2.0, 50.0)])
def test_every_magnitude_against_float64(p0, p, magnitude, backend):
    """On both sides of whatever ranges a kernel treats in its own way, a coordinate far smaller beside the others."""
    z = magnitude * torch.rand(9, 5, generator=torch.Generator().manual_seed(3)).to(DEVICE) + magnitude / 4
    z[::2, 1] *= -1e-12
    arguments = ((3, 2), p0, [p, p], 1.5)
    exact, exact_grads = gradients("reference", z.double(), *arguments)
    value, grads = gradients(backend, z, *arguments)
    finite = exact.abs() < 3e38
    largest = torch.finfo(torch.float32).max
    assert bool(((value - exact).abs()[finite] <= 5e-6 * (1 + exact.abs()[finite])).all())
    assert bool((value[exact < -1.001 * largest] == -math.inf).all())
    size = exact_grads[0].abs()
    assert bool(((grads[0] - exact_grads[0]).abs() <= 5e-5 * size + 1e-37)[size < 3e38].all())
    if bool(finite.all()):
        for found, truth in zip(grads[1:], exact_grads[1:]):
            torch.testing.assert_close(found.double(), truth, rtol=2e-5, atol=2e-5)


@on_every_backend
def test_parameters_of_other_dtypes_and_strides(backend):
    z = torch.randn(20, 6, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    p0, p, scale = tensor(2.1), tensor([2.2, 1.8]), tensor([[1.0, 9.0], [2.0, 9.0]], torch.float32)[:, 0]
    leaves = [t.requires_grad_() for t in (p0, p, scale)]
    value = log_prob(backend, z, (4, 2), *leaves)
    assert value.dtype == torch.float32
    # mean(): an upstream gradient of stride 0.
    grads = torch.autograd.grad(value.mean(), leaves)
    assert [g.dtype for g in grads] == [torch.float64, torch.float64, torch.float32]
    _, exact = gradients("reference", z.double(), (4, 2), p0.detach(), p.detach(), scale.detach())
    for found, truth in zip(grads, exact[1:]):
        torch.testing.assert_close(found.double(), truth / 20, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_types_give_float32(dtype):
    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(5)).to(DEVICE, dtype).requires_grad_()
    parameters = [torch.tensor(v, device=DEVICE, dtype=dtype) for v in (2.0, [1.5, 2.5], 1.0)]
    value = sf.ops.lp_nested_log_prob(z, (3, 2), *parameters)
    (dz,) = torch.autograd.grad(value.sum(), z)
    exact = log_prob("reference", z.detach().double(), (3, 2), *(t.double() for t in parameters))
    assert value.dtype == torch.float32 and dz.dtype == dtype
    torch.testing.assert_close(value.detach().double(), exact, rtol=1e-6, atol=1e-5)


@on_every_backend
def test_rows_of_a_wider_tensor(backend):
    wide = torch.randn(300, 11, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    arguments = ((4, 1, 2), 2.1, [2.2, 1.0, 1.8], 1.0)
    inside, (dz, *_) = gradients(backend, wide[:, 2:9], *arguments)
    alone, (expected, *_) = gradients(backend, wide[:, 2:9].contiguous(), *arguments)
    assert torch.equal(inside, alone) and torch.equal(dz, expected)


GOOD = {
    "z": torch.zeros(2, 3),
    "sizes": (2, 1),
    "p0": torch.tensor(2.0),
    "p": torch.tensor([2.0, 1.0]),
    "scale": torch.tensor(1.0),
}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"z": [1.0]}, TypeError, "z must be a torch.Tensor, got list"),
        ({"z": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "z must be float32, float64, bfloat16 or float16"),
        ({"z": torch.zeros(3)}, ValueError, r"z must be \(N, n\), got shape \(3,\)"),
        ({"sizes": (2, 2)}, ValueError, r"sizes must be positive and sum to the 3 dims of z, got \(2, 2\)"),
        ({"sizes": (4, -1)}, ValueError, "sizes must be positive"),
        ({"sizes": ()}, ValueError, "sizes must be positive"),
        ({"sizes": (2, 1.0)}, TypeError, "sizes must be ints, got float"),
        ({"p0": 2.0}, TypeError, "p0 must be a torch.Tensor, got float"),
        ({"p0": torch.ones(1)}, ValueError, r"p0 must be a scalar tensor, got shape \(1,\)"),
        ({"p": torch.ones(3)}, ValueError, r"p must have shape \(K,\) = \(2,\), got \(3,\)"),
        ({"scale": torch.ones(1)}, ValueError, r"scale must be a scalar or have shape \(K,\) = \(2,\), got \(1,\)"),
        ({"p": torch.ones(2, device="meta")}, ValueError, "p must be on z's device cpu, got meta"),
    ],
)  # fmt: skip
def test_bad_input(change, error, message):
    with pytest.raises(error, match=f"^lp_nested_log_prob: {message}"):
        sf.ops.lp_nested_log_prob(**{**GOOD, **change})
