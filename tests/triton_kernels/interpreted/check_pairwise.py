"""pairwise's launchers against tests/data/divergences.json and the reference: parts, borders, masks, bandwidths."""

import json
from pathlib import Path

import pytest
import torch
from common import assert_close, gradients, random
from strucfast.triton_kernels import hsic_backward, hsic_forward, mmd_backward, mmd_dimwise_forward, mmd_forward
from strucfast.triton_kernels.pairwise import PairwiseConfig

from strucfast import reference
from strucfast.reference.pairwise import KERNELS

CASES = json.loads((Path(__file__).parents[2] / "data" / "divergences.json").read_text())["cases"]
DTYPES = [torch.float32, torch.float64]
# None is the heuristic; the others cut the pairs into several ragged parts.
CONFIGS = [None, PairwiseConfig(32, 8, 1, 3), PairwiseConfig(64, 32, 2, 2)]


def of_kind(kind):
    return [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == kind]


def close(found, expected):
    expected = torch.tensor(expected, dtype=torch.float64).reshape(found.shape)
    rtol, atol = (1e-11, 1e-13) if found.dtype == torch.float64 else (0.0, 1e-6)
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", of_kind("mmd_u"))
def test_golden_mmd(case, dtype):
    inputs, expected = case["inputs"], case["expected"]
    x, y = (torch.tensor(inputs[k], dtype=dtype) for k in "xy")
    value, slope, none = mmd_forward(x, y, KERNELS.index(inputs["kernel"]), (inputs["param"],), True, 1)
    close(value, expected["mmd"])
    assert none.shape == (0,)
    if "grad_x" in expected:
        close(mmd_backward(torch.ones((), dtype=dtype), slope, none, 1)[0], expected["grad_x"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", of_kind("mmd_dim"))
def test_golden_mmd_dimwise(case, dtype):
    x, y = (torch.tensor(case["inputs"][k], dtype=dtype) for k in "xy")
    widths = (0.2, 0.4, 1.0, 2.0, 4.0, 10.0)
    value, _, slope = mmd_dimwise_forward(x, y, 1, widths, True, 2)
    assert abs(float(value.sum()) - case["expected"]["mmd"]) <= (1e-12 if dtype == torch.float64 else 3e-6)
    close(mmd_backward(torch.ones_like(value), slope, slope, 2)[1], case["expected"]["grad_y"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", of_kind("hsic"))
def test_golden_hsic(case, dtype):
    inputs = case["inputs"]
    x, y = (torch.tensor(inputs[k], dtype=dtype) for k in "xy")
    for unbiased, name in ((False, "hsic_biased"), (True, "hsic_unbiased")):
        value, *_ = hsic_forward(x, y, 0, (inputs["sigma_x"],), (inputs["sigma_y"],), unbiased)
        close(value, case["expected"][name])


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("n", "m", "config"), [(41, 90, CONFIGS[0]), (20, 21, CONFIGS[1]), (70, 5, CONFIGS[2])])
def test_mmd_against_reference(n, m, config, kernel, unbiased):
    x, y = random((n, 3), torch.float32, 1), random((m, 3), torch.float32, 2) + 0.5
    for name, forward in (("mmd", mmd_forward), ("mmd_dimwise", mmd_dimwise_forward)):
        widths = (0.5, 2.0)

        def function(*t, name=name):
            return getattr(reference, name)(*t, kernel=kernel, bandwidth=widths, unbiased=unbiased)

        grad = random((3,) if name == "mmd_dimwise" else (), torch.float32, 4)
        (truth,), truth_grads = gradients(function, (x, y), [grad], torch.float64)
        (eager,), eager_grads = gradients(function, (x, y), [grad], torch.float32)
        value, *slopes = forward(x, y, KERNELS.index(kernel), widths, unbiased, 3, config=config)
        assert_close(value, truth, eager, floor=1.0, label="value")
        for i, (found, t, e) in enumerate(zip(mmd_backward(grad, *slopes, 3), truth_grads, eager_grads)):
            assert_close(found, t, e, slack=64.0, floor=0.1, label=f"gradient {i}")
        bare = forward(x, y, KERNELS.index(kernel), widths, unbiased, 0, config=config)
        assert torch.equal(bare[0], value) and bare[1].shape == bare[2].shape == (0,)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("n", "config"), [(41, CONFIGS[0]), (70, CONFIGS[1]), (130, CONFIGS[2])])
def test_hsic_against_reference(n, config, kernel, unbiased):
    x = random((n, 3), torch.float32, 1)
    y = random((n, 2), torch.float32, 2) + x[:, :1]

    def function(*t):
        return reference.hsic(*t, kernel=kernel, bandwidth_x=(0.5, 2.0), bandwidth_y=1.5, unbiased=unbiased)

    grad = torch.tensor(1.5)
    (truth,), truth_grads = gradients(function, (x, y), [grad], torch.float64)
    (eager,), eager_grads = gradients(function, (x, y), [grad], torch.float32)
    statics = (KERNELS.index(kernel), (0.5, 2.0), (1.5,), unbiased)
    value, *centres = hsic_forward(x, y, *statics, config=config)
    assert_close(value, truth, eager, floor=0.25, label="value")
    whole = hsic_backward(grad, x, y, *centres, *statics, 3, config=config)
    for i, (found, t, e) in enumerate(zip(whole, truth_grads, eager_grads)):
        assert_close(found, t, e, slack=64.0, floor=0.1, label=f"gradient {i}")
    for mask in (1, 2):
        part = hsic_backward(grad, x, y, *centres, *statics, mask, config=config)
        for bit in range(2):
            assert torch.equal(part[bit], whole[bit]) if mask >> bit & 1 else part[bit].shape == (0,)


def test_errors():
    with pytest.raises(TypeError, match="both be float32 or float64, got torch.float32 and torch.float64"):
        mmd_forward(torch.ones(3, 2), torch.ones(3, 2, dtype=torch.float64), 0, (1.0,), True, 0)
    with pytest.raises(TypeError, match="both be float32 or float64"):
        hsic_forward(torch.ones(3, 2).half(), torch.ones(3, 2).half(), 0, (1.0,), (1.0,), False)
