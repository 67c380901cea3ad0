"""StrTfm and StrTfmBank against loops of plain MLPs and the golden values."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import strucfast as sf

GOLDEN = Path(__file__).parents[1] / "data" / "modulation.json"
CASES = [case for case in json.loads(GOLDEN.read_text())["cases"] if case["kind"] == "strtfm"]


def _mlp(sizes, activation=nn.Mish):
    layers = []
    for inp, out in itertools.pairwise(sizes):
        layers += [activation()] if layers else []
        layers.append(nn.Linear(inp, out))
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden(case):
    inputs, expected = case["inputs"], case["expected"]

    def tensor(values):
        return torch.tensor(values, dtype=torch.float64)

    weights = [tensor(layer["W"]) for layer in inputs["layers"]]
    x, u = tensor(inputs["x"]).requires_grad_(), tensor(inputs["U"]).requires_grad_()
    hidden = [weight.shape[0] for weight in weights[:-1]]
    layer = sf.nn.StrTfm(u.shape[1], x.shape[1], hidden, inputs["activation"], inputs["alpha_map"]).double()
    for i, values in enumerate(inputs["layers"]):
        layer.bank.weights[i].data = tensor(values["W"]).unsqueeze(0)
        layer.bank.biases[i].data = tensor(values["b"]).unsqueeze(0)
    scale, shift = layer.affine(u)
    y = layer(x, u)
    y.backward(tensor(inputs["g"]))

    def close(found, wanted):
        return torch.testing.assert_close(found, tensor(wanted), rtol=1e-11, atol=1e-12)

    close(scale, expected["alpha"])
    close(shift, expected["beta"])
    close(y, expected["y"])
    close(x.grad, expected["dx"])
    close(u.grad, expected["dU"])
    for i, values in enumerate(expected["dlayers"]):
        close(layer.bank.weights[i].grad[0], values["W"])
        close(layer.bank.biases[i].grad[0], values["b"])


def test_bank_matches_a_loop_of_mlps_and_converts_both_ways():
    torch.manual_seed(0)
    mlps = [_mlp((2, 16, 8, 12), nn.ELU) for _ in range(3)]
    bank = sf.nn.StrTfmBank.from_mlps(mlps, scale_map="sigmoid2")
    assert (bank.hidden, bank.activation, bank.channels) == ((16, 8), "elu", 6)
    u = torch.randn(5, 3, 2, dtype=torch.float64)
    scale, shift = bank(u)
    table = torch.stack([mlp(u[:, i]) for i, mlp in enumerate(mlps)], dim=1)
    torch.testing.assert_close(scale, 2 * torch.sigmoid(table[..., :6]), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(shift, table[..., 6:], rtol=1e-11, atol=1e-12)
    upstream = torch.randn_like(scale)
    (scale * upstream).sum().backward()
    (2 * torch.sigmoid(table[..., :6]) * upstream).sum().backward()
    for i, mlp in enumerate(mlps):
        for layer, linear in enumerate(mlp[::2]):
            torch.testing.assert_close(bank.weights[layer].grad[i], linear.weight.grad, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(bank.biases[layer].grad[i], linear.bias.grad, rtol=1e-10, atol=1e-12)
    for mlp, back in zip(mlps, bank.to_mlps()):
        assert [type(layer) for layer in back] == [type(layer) for layer in mlp]
        for name, value in mlp.state_dict().items():
            assert torch.equal(back.state_dict()[name], value)


def test_conversions_copy():
    mlp = _mlp((1, 4, 4))
    layer = sf.nn.StrTfm.from_mlp(mlp)
    back = layer.to_mlp()
    with torch.no_grad():
        layer.bank.weights[0].zero_()
    assert mlp[0].weight.abs().sum() > 0 and back[0].weight.abs().sum() > 0


def test_fresh_parameters_are_those_of_linear_layers_with_zero_output_bias():
    torch.manual_seed(0)
    bank = sf.nn.StrTfmBank(40, 3, 8, hidden=(32, 16))
    fresh = [_mlp((3, 32, 16, 16)) for _ in range(40)]
    for layer in range(3):
        ours = bank.weights[layer].detach().double()
        theirs = torch.stack([mlp[2 * layer].weight.detach() for mlp in fresh])
        bound = 1 / math.sqrt(ours.shape[2])
        assert ours.abs().max() <= bound and ours.abs().max() > 0.97 * bound
        # Same second moment: bound^2 / 3, over thousands of entries.
        assert ours.var().item() == pytest.approx(theirs.var().item(), rel=0.1)
        if layer < 2:
            assert 0.9 * bound < bank.biases[layer].abs().max() <= bound
    assert torch.equal(bank.biases[-1], torch.zeros(40, 16))
    scale, shift = bank(torch.randn(64, 40, 3))
    assert abs(scale.mean().item() - 1) < 0.05 and abs(shift.mean().item()) < 0.05


def test_zero_output_weight_is_the_identity():
    layer = sf.nn.StrTfm(2, 5, hidden=(4,))
    with torch.no_grad():
        layer.bank.weights[-1].zero_()
    x = torch.randn(3, 5, 2, 2)
    assert torch.equal(layer(x, torch.randn(3, 2)), x)


class _Halved(nn.Module):
    def forward(self, weight):
        return 0.5 * weight


def test_pruned_and_parametrized_weights_are_the_ones_used():
    torch.manual_seed(0)
    bank, u = sf.nn.StrTfmBank(2, 1, 3, hidden=(4, 5)), torch.randn(6, 2, 1)
    prune.random_unstructured(bank.weights, "0", amount=0.5)
    parametrize.register_parametrization(bank.biases, "1", _Halved())
    weights, biases = list(bank.weights), list(bank.biases)
    assert (weights[0] == 0).any() and torch.equal(biases[1], 0.5 * bank.biases.parametrizations["1"].original)
    torch.testing.assert_close(bank(u), sf.ops.str_tfm(u, weights, biases), rtol=0, atol=0)


def test_autocast_keeps_the_affine_in_float32():
    bank = sf.nn.StrTfmBank(3, 1, 8)
    u = torch.randn(6, 3, 1)
    with torch.autocast("cpu", torch.bfloat16):
        scale, shift = bank(u)
    assert scale.dtype == shift.dtype == torch.float32
    torch.testing.assert_close(scale, bank(u)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sf.nn.StrTfmBank.from_mlps([]), "at least one"),
        (lambda: sf.nn.StrTfmBank.from_mlps([_mlp((1, 4, 4)), _mlp((1, 5, 4))]), r"mlps\[1\] must match mlps\[0\]"),
        (lambda: sf.nn.StrTfmBank.from_mlps([_mlp((1, 4, 4)), _mlp((1, 4, 4), nn.ReLU)]), "activation relu"),
        (lambda: sf.nn.StrTfmBank.from_mlps([_mlp((1, 4, 4), nn.Hardtanh)]), "Hardtanh"),
        (lambda: sf.nn.StrTfmBank.from_mlps([_mlp((1, 4, 5))]), "even number of outputs"),
        (lambda: sf.nn.StrTfmBank.from_mlps([nn.Sequential(nn.Linear(1, 4, bias=False))]), "bias"),
        (lambda: sf.nn.StrTfmBank(2, 1, 4, activation="gelu"), "activation must be one of mish.*got 'gelu'"),
        (lambda: sf.nn.StrTfmBank(2, 1, 4, scale_map="log"), "scale_map must be one of exp.*got 'log'"),
        (lambda: sf.nn.StrTfmBank(2, 1, 4, hidden=(8, 0)), r"hidden\[1\] must be >= 1, got 0"),
        (lambda: sf.nn.StrTfmBank(2, 1, 4)(torch.zeros(3, 2, 2)), r"u must have shape \(N, 2, 1\), got \(3, 2, 2\)"),
        (lambda: sf.nn.StrTfm(2, 4).affine(torch.zeros(3, 1)), r"u must have shape \(N, 2\), got \(3, 1\)"),
    ],
)
def test_bad_input_names_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
