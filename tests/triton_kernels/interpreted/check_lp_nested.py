"""lp_nested_log_prob's launchers against golden numbers and the reference: sizes, tiles, sums, masks, strides."""

import json
import math
from pathlib import Path

import pytest
import torch
from common import assert_close, gradients, guarded, random
from strucfast.triton_kernels import lp_nested_log_prob_backward, lp_nested_log_prob_forward
from strucfast.triton_kernels.lp_nested import LpNestedConfig

from strucfast import reference

DATA = json.loads((Path(__file__).parents[2] / "data" / "lpnested.json").read_text())
CASES = {case["name"]: case for case in DATA["cases"] if case["kind"] == "isa"}
DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype):
    inputs, expected = CASES[name]["inputs"], CASES[name]["expected"]
    expected = {k: torch.tensor(v, dtype=torch.float64) for k, v in expected.items()}
    z, p0, p, scale, upstream = (torch.tensor(inputs[k], dtype=dtype) for k in ("z", "p0", "pk", "sk", "upstream"))
    arguments = (guarded(z), inputs["nk"], p0, p, scale)
    extreme = name.startswith("scales")
    rtol = 1e-12 if dtype == torch.float64 else 5e-5 if extreme else 1e-5
    value_tolerance = 1e-12 if dtype == torch.float64 else 5e-6
    value = lp_nested_log_prob_forward(*arguments)
    error = (value - expected["logpdf"]).abs()
    assert bool((error <= value_tolerance * (1 + expected["logpdf"].abs())).all())
    dz, *_ = lp_nested_log_prob_backward(torch.ones_like(value), *arguments, 1)
    torch.testing.assert_close(dz.double(), expected["grad_z"], rtol=rtol, atol=1e-37)
    _, *of_parameters = lp_nested_log_prob_backward(upstream, *arguments, 14)
    for key, found in zip(("grad_p0", "grad_pk", "grad_sk"), of_parameters):
        torch.testing.assert_close(found.double(), expected[key], rtol=rtol, atol=max(1e-12, rtol * 1e-2))


def problem(rows, sizes, dtype, shared):
    z = random((rows, sum(sizes)), dtype, 1)
    p = guarded(torch.linspace(0.75, 3.0, len(sizes), dtype=dtype))
    scale = torch.tensor(1.3, dtype=dtype) if shared else guarded(torch.linspace(0.5, 2.0, len(sizes), dtype=dtype))
    return z, torch.tensor(2.1, dtype=dtype), p, scale


# The third has more runs than a launch takes; 70 rows one by one are more programs than the last sum takes.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows, sizes, config",
    [(17, (4, 4, 4), None), (33, (3, 1, 7, 8), None), (9, (1, 2) * 6, LpNestedConfig(4, 1)), (5, (33, 65), None),
     (70, (2, 2, 3), LpNestedConfig(1, 1)), (1, (1,), None)],
)  # fmt: skip
def test_against_reference(rows, sizes, config, dtype):
    z, *parameters = problem(rows, sizes, dtype, len(sizes) == 3)
    grad = random((rows,), dtype, 2)

    def function(z, p0, p, scale):
        return reference.lp_nested_log_prob(z, sizes, p0, p, scale)

    (truth,), truth_grads = gradients(function, (z, *parameters), [grad], torch.float64)
    (eager,), eager_grads = gradients(function, (z, *parameters), [grad], dtype)
    assert_close(lp_nested_log_prob_forward(z, sizes, *parameters, config=config), truth, eager, label="log_prob")
    results = lp_nested_log_prob_backward(grad, z, sizes, *parameters, 15, config=config)
    # Powers of long subspaces and sums over all rows: some tens of eps of the largest term.
    floor = float(truth.abs().max()) * math.sqrt(rows)
    for name, result, t, e in zip(("dz", "dp0", "dp", "dscale"), results, truth_grads, eager_grads):
        assert_close(result, t, e, label=name, slack=64.0, floor=1e-30 if name == "dz" else floor)


@pytest.mark.parametrize("mask", range(16))
def test_masks(mask):
    z, *parameters = problem(11, (3, 2), torch.float32, False)
    grad = random((11,), torch.float32, 2)
    whole = lp_nested_log_prob_backward(grad, z, (3, 2), *parameters, 15)
    part = lp_nested_log_prob_backward(grad, z, (3, 2), *parameters, mask)
    for bit in range(4):
        if mask >> bit & 1:
            assert torch.equal(part[bit], whole[bit])
        else:
            assert part[bit].shape == (0,)


def test_other_strides_and_dtypes():
    z, p0, p, scale = problem(12, (3, 2), torch.float32, False)
    expected = lp_nested_log_prob_forward(z, (3, 2), p0, p, scale)
    wide = torch.full((12, 9), math.nan)
    wide[:, 2:7] = z
    spread = torch.full((4,), math.nan)
    spread[::2] = p
    found = lp_nested_log_prob_forward(wide[:, 2:7], (3, 2), p0.double(), spread[::2], scale.double())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    grad = torch.tensor(0.5).expand(12)
    results = lp_nested_log_prob_backward(grad, wide[:, 2:7], (3, 2), p0.double(), spread[::2], scale.double(), 15)
    truth = lp_nested_log_prob_backward(grad.contiguous(), z, (3, 2), p0, p, scale, 15)
    for result, t, dtype in zip(results, truth, (torch.float32, torch.float64, torch.float32, torch.float64)):
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), t, rtol=1e-5, atol=1e-5)


def test_no_rows():
    z, *parameters = problem(0, (3, 2), torch.float32, False)
    assert lp_nested_log_prob_forward(z, (3, 2), *parameters).shape == (0,)
    results = lp_nested_log_prob_backward(z.new_empty(0), z, (3, 2), *parameters, 15)
    assert [tuple(r.shape) for r in results] == [(0, 5), (), (2,), (2,)]
    assert all(bool((r == 0).all()) for r in results)
