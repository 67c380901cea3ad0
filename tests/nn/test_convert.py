"""convert: the converted network is the plain one, with fewer layers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import strucfast as sf

ACTIVATIONS = [nn.Mish, nn.SiLU, nn.ReLU, nn.ELU, nn.Tanh, nn.Identity]


def jolt(model):
    """Norm parameters away from 1 and 0, so that losing them shows."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.GroupNorm) and layer.affine:
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_()
    return model


def nested(activation=nn.Mish):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8, eps=0.1), activation())
    body = nn.ModuleDict({"a": block, "b": nn.ModuleList([nn.Sequential(nn.GroupNorm(8, 8), activation())])})
    return jolt(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), activation(), Runs(body)))


class Runs(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body["b"][0](self.body["a"](x) + x)


def assert_same(model, plain, x):
    found, wanted = model(x), plain(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(wanted)
    ours = torch.autograd.grad(found, list(model.parameters()), upstream)
    theirs = torch.autograd.grad(wanted, list(plain.parameters()), upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nested_networks_keep_values_and_gradients(activation):
    model = nested(activation)
    plain, parameters = copy.deepcopy(model), list(model.parameters())
    report = sf.nn.convert(model)
    assert list(report.replaced) == ["1", "3.body.a.1", "3.body.b.0.0"] and not report.left
    assert report.replaced["1"] == f"GroupNorm + {activation.__name__}"
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert isinstance(model[1], sf.nn.GroupNormActivation) and type(model[2]) is nn.Identity
    assert_same(model, plain, torch.randn(2, 3, 7, 9))


def test_float64_agrees_to_its_precision():
    model = nested().double()
    plain = copy.deepcopy(model)
    sf.nn.convert(model)
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-11, atol=1e-12)


def test_eps_is_the_norms_own():
    model = nn.Sequential(nn.GroupNorm(1, 2, eps=3.0), nn.Tanh())
    x = torch.randn(1, 2, 4, 4)
    wanted = model(x)
    sf.nn.convert(model)
    torch.testing.assert_close(model(x), wanted)
    model[0].eps = 1e-5
    assert not torch.allclose(model(x), wanted, atol=1e-2)


def test_checkpoints_load_both_ways():
    model, other = nested(), nested()
    plain = copy.deepcopy(model)
    sf.nn.convert(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    x = torch.randn(2, 3, 7, 9)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-4)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(x), other(x))


@pytest.mark.parametrize("shape", [(5, 4), (2, 4, 3), (2, 4, 3, 2), (2, 4, 2, 2, 2), (2, 4, 2, 2, 1, 3)])
def test_any_number_of_spatial_dims(shape):
    model = jolt(nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU()))
    x = torch.randn(shape)
    wanted = model(x)
    sf.nn.convert(model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)


def test_without_affine_and_with_a_weight_only():
    model = nn.Sequential(nn.GroupNorm(2, 4, affine=False), nn.ReLU(inplace=True), nn.GroupNorm(2, 4), nn.ELU())
    model[2].bias = None
    nn.init.normal_(model[2].weight)
    plain, x = copy.deepcopy(model), torch.randn(3, 4, 5)
    assert len(sf.nn.convert(model).replaced) == 2
    assert list(model.state_dict()) == ["2.weight"]
    assert_same(model, plain, x)


def test_modes_dtypes_and_copies_carry_over():
    model = nested().eval()
    sf.nn.convert(model)
    assert not any(layer.training for layer in model.modules())
    model.train()
    assert all(layer.training for layer in model.modules())
    again = copy.deepcopy(model).to(torch.float64)
    assert again[1].weight.dtype == torch.float64 and again[1].weight is not model[1].weight
    frozen = nn.Sequential(nn.GroupNorm(2, 4).requires_grad_(False), nn.Mish())
    sf.nn.convert(frozen)
    assert not frozen[0].weight.requires_grad


def test_an_optimizer_made_before_goes_on():
    model = nested()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sf.nn.convert(model)
    before = model[1].weight.detach().clone()
    model(torch.randn(2, 3, 7, 9)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].weight, before)


def test_identity_layers_between_are_stepped_over():
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.Identity(), nn.Mish(), nn.GroupNorm(2, 4), nn.Identity(), nn.Flatten())
    plain, x = copy.deepcopy(model), torch.randn(2, 4, 3)
    report = sf.nn.convert(model)
    assert report.replaced == {"0": "GroupNorm + Mish", "3": "GroupNorm + Identity"}
    assert_same(model, plain, x)


def test_shared_layers_stay_shared():
    norm, act = nn.GroupNorm(2, 4), nn.Mish()
    run = nn.Sequential(norm, act)
    model = jolt(nn.Sequential(run, nn.Sequential(norm, act), run, act))
    plain, x = copy.deepcopy(model), torch.randn(2, 4, 3)
    report = sf.nn.convert(model)
    assert list(report.replaced) == ["0.0", "1.0"] and model[0][0] is model[1][0] and model[2] is model[0]
    assert model[3] is act
    assert_same(model, plain, x)


@pytest.mark.parametrize("other", [lambda n: nn.Sequential(n, nn.ReLU()), lambda n: nn.Sequential(n), lambda n: n])
def test_a_norm_shared_with_another_use_is_left_everywhere(other):
    norm = nn.GroupNorm(2, 4)
    model = nn.Sequential(nn.Sequential(norm, nn.Mish()), nn.Conv1d(4, 4, 1), other(norm), nn.Conv1d(4, 4, 1))
    report = sf.nn.convert(model)
    assert not report.replaced and model[0][0] is norm and "shared" in report.left["0.0"] and len(report.left) == 2


def test_nothing_to_do():
    for model in (nn.Linear(2, 2), nn.Sequential(), nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())):
        before = str(model)
        report = sf.nn.convert(model)
        assert report == sf.nn.Conversion() and str(model) == before
    assert str(report) == "0 replaced, 0 left alone"


def test_converting_again_changes_nothing():
    model = nested()
    sf.nn.convert(model)
    before = [id(layer) for layer in model.modules()]
    report = sf.nn.convert(model)
    assert not report.replaced and not report.left and [id(layer) for layer in model.modules()] == before


class OwnSequential(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + x


class OwnNorm(nn.GroupNorm):
    pass


def changed(change, place=0):
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.Mish())
    change(model[place])
    return model


def patch(layer):
    layer.forward = lambda x: x


class Attribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.GroupNorm(2, 4), nn.Mish()

    def forward(self, x):
        return self.act(self.norm(x))


LEFT = [
    (lambda: nn.Sequential(OwnNorm(2, 4), nn.Mish()), "OwnNorm is a subclass of GroupNorm"),
    (lambda: OwnSequential(nn.GroupNorm(2, 4), nn.Mish()), "OwnSequential overrides forward"),
    (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.ELU(alpha=0.5)), "ELU with another alpha follows it"),
    (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.GELU()), "GELU follows it"),
    (lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.GroupNorm(2, 4)), "nothing follows it"),
    (lambda: nn.Sequential(nn.InstanceNorm2d(4), nn.Mish()), "AdaIN"),
    (lambda: nn.GroupNorm(2, 4), "not in an nn.Sequential"),
    (Attribute, "what follows it is in forward code"),
    (lambda: changed(lambda norm: norm.register_forward_hook(lambda *a: None)), "the GroupNorm has hooks"),
    (lambda: changed(lambda norm: norm.register_forward_pre_hook(lambda *a: None)), "the GroupNorm has hooks"),
    (lambda: changed(lambda act: act.register_forward_hook(lambda *a: None), 1), "the Mish has hooks"),
    (lambda: changed(lambda act: act.register_full_backward_hook(lambda *a: None), 1), "the Mish has hooks"),
    (lambda: changed(patch), "its forward was replaced"),
    (lambda: changed(patch, 1), "its forward was replaced"),
    (lambda: changed(lambda norm: norm.register_buffer("steps", torch.zeros(()))), "buffers or parameters of its own"),
    (lambda: changed(lambda norm: parametrizations.weight_norm(norm, "weight", dim=0)), "it is parametrised"),
]


@pytest.mark.parametrize(("make", "reason"), LEFT, ids=[reason for _, reason in LEFT])
def test_what_is_left_alone(make, reason):
    model = make()
    layers = list(model.modules())
    report = sf.nn.convert(model)
    assert not report.replaced and all(a is b for a, b in zip(model.modules(), layers, strict=True))
    (found,) = report.left.values()
    assert reason in found and found in str(report)


def test_hooks_on_the_sequential_still_run():
    model, seen = nn.Sequential(nn.GroupNorm(2, 4), nn.Mish()), []
    model.register_forward_hook(lambda *a: seen.append(1))
    assert sf.nn.convert(model).replaced
    model(torch.randn(1, 4, 3))
    assert seen == [1]


def test_compiles_as_one_graph():
    torch.compiler.reset()
    model = nested()
    plain, x = copy.deepcopy(model), torch.randn(2, 3, 7, 9)
    sf.nn.convert(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-5)
    compiled(x).sum().backward()
    assert model[1].weight.grad is not None


def test_scale_and_shift_join_the_kernel():
    layer = jolt(nn.Sequential(sf.nn.GroupNormActivation(2, 4, "relu")))[0]
    x, scale, shift = torch.randn(2, 4, 3), torch.randn(2, 4), torch.randn(2, 4)
    wanted = scale[..., None] * torch.relu(nn.GroupNorm.forward(layer, x)) + shift[..., None]
    torch.testing.assert_close(layer(x, scale, shift), wanted, rtol=1e-5, atol=1e-5)
    assert "activation=relu" in repr(layer)


def test_bad_input_names_the_argument():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        sf.nn.convert({})
    with pytest.raises(ValueError, match="activation must be one of"):
        sf.nn.GroupNormActivation(2, 4, "gelu")
    with pytest.raises(ValueError, match="channels of x"):
        sf.nn.GroupNormActivation(2, 4)(torch.zeros(1, 3, 2))
