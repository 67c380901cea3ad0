"""Exact numbers (mpmath, 40 digits) for the modulation ops and str_tfm, on every backend that runs here."""

import json
from pathlib import Path

import pytest
import torch

import strucfast as sf
from strucfast import _native
from strucfast.reference._activations import activate

GOLDEN = json.loads((Path(__file__).parents[1] / "data/modulation.json").read_text())["cases"]
BACKENDS = ["reference", *(["cpp"] if _native.missing("cpu") is None else [])]
BACKENDS += ["cuda"] if _native.missing("cuda") is None else []
BACKENDS += ["triton"] if _native.missing("triton") is None else []
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

on_every_backend = pytest.mark.parametrize("backend", BACKENDS)
both_dtypes = pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)


def cases(kind):
    return [pytest.param(c, id=c["name"]) for c in GOLDEN if c["kind"] == kind]


def tensor(values, dtype):
    return torch.tensor(values, dtype=torch.float64, device=DEVICE).to(dtype)


def check(name, found, expected, dtype, case):
    """The tolerances that the golden file states: y absolute, gradients relative to the largest entry."""
    expected = torch.tensor(expected, dtype=torch.float64)
    found = found.double().cpu().reshape(expected.shape)
    if dtype == torch.float64:
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
        return
    # adain subtracts the first element in both directions, so that an offset loses nothing.
    offset = "offset" in case["name"] and case["kind"] != "adain"
    relative = (5e-4 if offset else 2e-6) if name != "y" else 0.0
    bound = (3e-4 if offset else 2e-6) if name == "y" else relative * max(1.0, float(expected.abs().max()))
    error = float((found - expected).abs().max())
    assert error <= bound, f"{name}: {error} > {bound}"


@on_every_backend
@both_dtypes
@pytest.mark.parametrize("case", cases("affine"))
def test_modulate(case, backend, dtype):
    inputs, expected = case["inputs"], case["expected"]
    leaves = [tensor(inputs[k], dtype).requires_grad_() for k in ("x", "alpha", "beta")]
    with sf.use_backend(backend):
        y = sf.ops.modulate(*leaves)
        grads = torch.autograd.grad(y, leaves, tensor(inputs["g"], dtype))
    for name, found in zip(("y", "dx", "dalpha", "dbeta"), (y.detach(), *grads)):
        check(name, found, expected[name], dtype, case)


@on_every_backend
@both_dtypes
@pytest.mark.parametrize("case", cases("gn_mish_affine"))
def test_group_norm_modulate(case, backend, dtype):
    inputs, expected = case["inputs"], case["expected"]
    names = ("x", "weight", "bias", "alpha", "beta")
    leaves = [tensor(inputs[k], dtype).requires_grad_() for k in names]
    with sf.use_backend(backend):
        y = sf.ops.group_norm_modulate(leaves[0], inputs["groups"], *leaves[1:], eps=inputs["eps"])
        grads = torch.autograd.grad(y, leaves, tensor(inputs["g"], dtype))
    for name, found in zip(("y", *(f"d{n}" for n in names)), (y.detach(), *grads)):
        check(name, found, expected[name], dtype, case)


# adain has no CUDA C++ kernel.
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "cuda"])
@both_dtypes
@pytest.mark.parametrize("case", cases("adain"))
def test_adain(case, backend, dtype):
    inputs, expected = case["inputs"], case["expected"]
    leaves = [tensor(inputs[k], dtype).requires_grad_() for k in ("x", "gamma", "beta")]
    with sf.use_backend(backend):
        y = sf.ops.adain(*leaves, eps=inputs["eps"])
        grads = torch.autograd.grad(y, leaves, tensor(inputs["g"], dtype))
    for name, found in zip(("y", "dx", "dgamma", "dbeta"), (y.detach(), *grads)):
        check(name, found, expected[name], dtype, case)


@on_every_backend
@both_dtypes
@pytest.mark.parametrize("case", cases("strtfm"))
def test_str_tfm_and_its_modulation(case, backend, dtype):
    inputs, expected = case["inputs"], case["expected"]
    u = tensor(inputs["U"], dtype).unsqueeze(1).requires_grad_()
    x = tensor(inputs["x"], dtype).requires_grad_()
    weights = [tensor(layer["W"], dtype).unsqueeze(0).requires_grad_() for layer in inputs["layers"]]
    biases = [tensor(layer["b"], dtype).unsqueeze(0).requires_grad_() for layer in inputs["layers"]]
    with sf.use_backend(backend):
        scale, shift = sf.ops.str_tfm(
            u, weights, biases, activation=inputs["activation"], scale_map=inputs["alpha_map"]
        )
        y = sf.ops.modulate(x, scale[:, 0], shift[:, 0])
        leaves = [x, scale, shift, u, *weights, *biases]
        grads = torch.autograd.grad(y, leaves, tensor(inputs["g"], dtype))
    found = {
        "alpha": scale,
        "beta": shift,
        "y": y,
        "dx": grads[0],
        "dalpha": grads[1],
        "dbeta": grads[2],
        "dU": grads[3],
    }
    for name, value in found.items():
        check(name, value.detach(), expected[name], dtype, case)
    layers = len(weights)
    for i, layer in enumerate(expected["dlayers"]):
        check("dW", grads[4 + i], layer["W"], dtype, case)
        check("db", grads[4 + layers + i], layer["b"], dtype, case)


@on_every_backend
@both_dtypes
@pytest.mark.parametrize("case", cases("mish"))
def test_mish_points(case, backend, dtype):
    """Through the fused kernel: two channels, one group each, weight 0 and bias u make its activation see exactly u."""
    points = torch.tensor(case["inputs"]["u"], dtype=torch.float64)
    u = points.to(DEVICE, dtype).requires_grad_()
    x = torch.zeros(1, len(points), 2, dtype=dtype, device=DEVICE)
    x[..., 1] = 1.0
    zero = torch.zeros(len(points), dtype=dtype, device=DEVICE)
    with sf.use_backend(backend):
        y = sf.ops.group_norm_modulate(x, len(points), zero, u)
        (slope,) = torch.autograd.grad(y[0, :, 0].sum(), u)
    scale = points.abs().clamp_min(1.0)
    # The golden file's own float32 bounds for the one-exp form: 6.7e-7 and 1.4e-7 absolute for |u| of order 1.
    tolerance = 1e-12 if dtype == torch.float64 else 8e-7
    for found, name in ((y[0, :, 0].detach(), "mish"), (slope, "dmish")):
        expected = torch.tensor(case["expected"][name], dtype=torch.float64)
        assert float(((found.double().cpu() - expected).abs() / scale).max()) <= tolerance, name


def test_reference_mish_is_the_golden_mish():
    case = next(c for c in GOLDEN if c["kind"] == "mish")
    u = torch.tensor(case["inputs"]["u"], dtype=torch.float64)
    expected = torch.tensor(case["expected"]["mish"], dtype=torch.float64)
    torch.testing.assert_close(activate(u, "mish"), expected, rtol=1e-12, atol=1e-13)
