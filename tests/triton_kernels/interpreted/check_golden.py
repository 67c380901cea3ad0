"""The launchers against tests/data/modulation.json (mpmath at 40 digits), within the tolerances it states."""

import json
from pathlib import Path

import pytest
import torch
from common import ACTIVATIONS, SCALE_MAPS

from strucfast import triton_kernels as kernels

DATA = json.loads((Path(__file__).parents[2] / "data" / "modulation.json").read_text())
CASES = {case["name"]: case for case in DATA["cases"]}
DTYPES = [torch.float32, torch.float64]


def of_kind(kind):
    return [name for name, case in CASES.items() if case["kind"] == kind]


def tensors(case, dtype):
    def convert(value):
        return torch.tensor(value, dtype=dtype) if isinstance(value, list) else value

    inputs = {k: convert(v) for k, v in case["inputs"].items() if k != "layers"}
    expected = {k: convert(v) for k, v in case["expected"].items() if k != "dlayers"}
    return inputs, expected


def close(actual, expected, name):
    if actual.dtype == torch.float64:
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
    else:
        # 2e-6 of the largest value; adain alone keeps a mean whose rounding does not limit the offset cases.
        y_limit, grad_limit = (4e-6, 5e-4) if "offset" in name and "adain" not in name else (2e-6, 2e-6)
        limit = grad_limit * float(expected.abs().max()) if name.endswith("grad") else y_limit
        assert float((actual - expected).abs().max()) <= max(limit, 1e-30), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", of_kind("affine"))
def test_modulate(name, dtype):
    i, e = tensors(CASES[name], dtype)
    close(kernels.modulate_forward(i["x"], i["alpha"], i["beta"]), e["y"], name)
    results = kernels.modulate_backward(i["g"], i["x"], i["alpha"], False, 7)
    for result, key in zip(results, ("dx", "dalpha", "dbeta")):
        close(result, e[key], name + " grad")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", of_kind("adain"))
def test_adain(name, dtype):
    i, e = tensors(CASES[name], dtype)
    y, statistics = kernels.adain_forward(i["x"], i["gamma"], i["beta"], i["eps"])
    close(y, e["y"], name)
    results = kernels.adain_backward(i["g"], i["x"], statistics, i["gamma"], False, 7)
    for result, key in zip(results, ("dx", "dgamma", "dbeta")):
        close(result, e[key], name + " grad")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", of_kind("gn_mish_affine"))
def test_group_norm_modulate(name, dtype):
    i, e = tensors(CASES[name], dtype)
    parameters = (i["weight"], i["bias"], i["alpha"], i["beta"])
    y, mean, rstd = kernels.group_norm_modulate_forward(i["x"], i["groups"], *parameters, 1, i["eps"])
    close(y, e["y"], name)
    results = kernels.group_norm_modulate_backward(i["g"], i["x"], mean, rstd, i["groups"], *parameters, 1, 31)
    for result, key in zip(results, ("dx", "dweight", "dbias", "dalpha", "dbeta")):
        close(result, e[key], name + " grad")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", of_kind("strtfm"))
def test_str_tfm(name, dtype):
    case = CASES[name]
    i, e = tensors(case, dtype)
    layers = [{k: torch.tensor(v, dtype=dtype) for k, v in layer.items()} for layer in case["inputs"]["layers"]]
    weights, biases = [layer["W"][None] for layer in layers], [layer["b"][None] for layer in layers]
    codes = (ACTIVATIONS.index(i["activation"]), SCALE_MAPS.index(i["alpha_map"]))
    scale, shift, saved = kernels.str_tfm_forward(i["U"][:, None], weights, biases, *codes, True)
    close(scale[:, 0], e["alpha"], name)
    close(shift[:, 0], e["beta"], name)
    close(kernels.modulate_forward(i["x"], scale[:, 0], shift[:, 0]), e["y"], name)
    _, dalpha, dbeta = kernels.modulate_backward(i["g"], i["x"], scale[:, 0], False, 7)
    du, dweights, dbiases = kernels.str_tfm_backward(
        dalpha[:, None], dbeta[:, None], i["U"][:, None], weights, biases, scale, saved, *codes, 3
    )
    close(du[:, 0], e["dU"], name + " grad")
    for layer, dweight, dbias in zip(case["expected"]["dlayers"], dweights, dbiases):
        close(dweight[0], torch.tensor(layer["W"], dtype=dtype), name + " grad")
        close(dbias[0], torch.tensor(layer["b"], dtype=dtype), name + " grad")
