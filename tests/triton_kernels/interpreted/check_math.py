"""Activations, slopes and scale maps inside a kernel against float64 PyTorch, at ordinary and extreme arguments."""

import json
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from common import ACTIVATIONS, SCALE_MAPS
from strucfast.triton_kernels._math import activate, activate_with_slope, map_scale, map_scale_slope

from strucfast.reference._activations import SOFTPLUS_SHIFT
from strucfast.reference._activations import activate as reference_activate
from strucfast.reference._activations import map_scale as reference_map

GOLDEN = Path(__file__).parents[2] / "data" / "modulation.json"


@triton.jit
def activation_kernel(u_ptr, value_ptr, both_ptr, slope_ptr, n, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    u = tl.load(u_ptr + index, mask=index < n, other=0.0)
    value, slope = activate_with_slope(u, ACTIVATION)
    tl.store(value_ptr + index, activate(u, ACTIVATION), mask=index < n)
    tl.store(both_ptr + index, value, mask=index < n)
    tl.store(slope_ptr + index, slope, mask=index < n)


@triton.jit
def map_kernel(a_ptr, scale_ptr, slope_ptr, n, SCALE_MAP: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    scale = map_scale(tl.load(a_ptr + index, mask=index < n, other=0.0), SCALE_MAP)
    tl.store(scale_ptr + index, scale, mask=index < n)
    tl.store(slope_ptr + index, map_scale_slope(scale, SCALE_MAP), mask=index < n)


def run_activation(u, code):
    value, both, slope = torch.empty_like(u), torch.empty_like(u), torch.empty_like(u)
    activation_kernel[(1,)](u, value, both, slope, u.numel(), ACTIVATION=code, BLOCK=1024)
    return value, both, slope


def points(dtype):
    small = torch.logspace(-12, 2, 200, dtype=torch.float64)
    return torch.cat([torch.linspace(-30, 30, 500, dtype=torch.float64), small, -small, torch.zeros(1)]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("code", range(6))
def test_activation_and_slope(code, dtype):
    u = points(dtype)
    value, both, slope = run_activation(u, code)
    exact = u.double().requires_grad_()
    truth = reference_activate(exact, ACTIVATIONS[code])
    (truth_slope,) = torch.autograd.grad(truth.sum(), exact)
    eps = torch.finfo(dtype).eps
    # Relative to |u| near 0 and to 1 elsewhere: what a network multiplies and adds.
    scale = torch.minimum(exact.detach().abs(), torch.ones(())) + truth.detach().abs()
    for result in (value, both):
        assert ((result.double() - truth.detach()).abs() <= 8 * eps * scale + 1e-40).all()
    assert ((slope.double() - truth_slope).abs() <= 32 * eps).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("code", range(6))
def test_activation_extremes(code, dtype):
    u = torch.tensor([-3e38, -1e30, -1e4, -200.0, -100.0, 100.0, 200.0, 1e4, 1e30, 3e38, float("nan")], dtype=dtype)
    value, both, slope = run_activation(u, code)
    exact = u.double().requires_grad_()
    truth = reference_activate(exact, ACTIVATIONS[code])
    (truth_slope,) = torch.autograd.grad(truth.sum(), exact)
    for result in (value, both):
        torch.testing.assert_close(result[:-1].double(), truth.detach()[:-1], rtol=1e-6, atol=1e-30)
        assert torch.isnan(result[-1])
    torch.testing.assert_close(slope[:-1].double(), truth_slope[:-1], rtol=1e-6, atol=1e-30)
    if code not in (0, 3):
        assert torch.isnan(slope[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("code", range(5))
def test_scale_map_and_slope(code, dtype):
    a = torch.linspace(-40, 40, 401, dtype=torch.float64).to(dtype)
    scale, slope = torch.empty_like(a), torch.empty_like(a)
    map_kernel[(1,)](a, scale, slope, a.numel(), SCALE_MAP=code, BLOCK=512)
    exact = a.double().requires_grad_()
    truth = reference_map(exact, SCALE_MAPS[code])
    if code == 2:
        # torch's softplus is the identity above 20, which costs it digits that the kernel keeps.
        truth = torch.logaddexp(exact + SOFTPLUS_SHIFT, torch.zeros((), dtype=torch.float64))
    (truth_slope,) = torch.autograd.grad(truth.sum(), exact)
    eps = torch.finfo(dtype).eps
    # The argument is rounded relative to its own size, and exp turns that into a relative error.
    assert ((scale.double() - truth.detach()).abs() <= 64 * eps * truth.detach().abs()).all()
    # sigmoid2's slope near saturation is a difference: absolute there.
    assert ((slope.double() - truth_slope).abs() <= 64 * eps * torch.maximum(truth_slope.abs(), torch.ones(()))).all()


@pytest.mark.parametrize("code", range(5))
def test_scale_map_keeps_nan(code):
    a = torch.tensor([float("nan"), 0.0])
    scale, slope = torch.empty_like(a), torch.empty_like(a)
    map_kernel[(1,)](a, scale, slope, 2, SCALE_MAP=code, BLOCK=2)
    assert torch.isnan(scale[0])
    torch.testing.assert_close(scale[1], torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_mish(dtype):
    case = next(c for c in json.loads(GOLDEN.read_text())["cases"] if c["name"] == "mish_points")
    u = torch.tensor(case["inputs"]["u"], dtype=dtype)
    value, _, slope = run_activation(u, 1)
    tolerance = {"rtol": 1e-11, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 1e-6}
    torch.testing.assert_close(value, torch.tensor(case["expected"]["mish"], dtype=dtype), **tolerance)
    torch.testing.assert_close(slope, torch.tensor(case["expected"]["dmish"], dtype=dtype), **tolerance)
