"""Where a step's time goes: what belongs to which part, and that the parts add up."""

import json

import pytest
import torch

from benchmarks import _models, profile_steps

IMAGE = (3, 64, 64)
MAP, LOGITS, ROW, PAIRS = (128, 64, 32, 32), (128, 3, 64, 64), (128, 64), (128, 128, 12)


@pytest.mark.parametrize(
    ("name", "shapes", "part"),
    [
        ("aten::mkldnn_convolution", (MAP, (64, 64, 3, 3)), "convolution"),
        ("aten::convolution_backward", (MAP, MAP), "convolution"),
        ("strucfast::_group_norm_modulate_backward_cpp", (MAP, MAP), "normalisation, activation, affine"),
        ("aten::native_group_norm", (MAP,), "normalisation, activation, affine"),
        ("aten::mish", (MAP,), "normalisation, activation, affine"),
        ("aten::mul", ((128, 64, 1, 1), MAP), "normalisation, activation, affine"),
        ("aten::mish_backward", (ROW, ROW), "structural transforms, rungs, heads"),
        ("strucfast::_str_tfm_cpp", ((128, 12, 1),), "structural transforms, rungs, heads"),
        ("aten::addmm", ((64,), ROW, (64, 64)), "structural transforms, rungs, heads"),
        ("aten::max_pool2d_with_indices_backward", (MAP, MAP), "pooling"),
        ("aten::upsample_bilinear2d", (MAP,), "upsampling"),
        ("aten::log_sigmoid_forward", (LOGITS,), "loss"),
        ("aten::sub_", (LOGITS, LOGITS), "loss"),
        ("aten::mul", (PAIRS, PAIRS), "loss"),
        ("strucfast::_aggregate_log_density_cpp", (ROW,), "loss"),
        ("aten::_fused_adam_", ([], [], []), "optimizer"),
        ("Optimizer.step#Adam.step", (), "optimizer"),
        ("aten::copy_", (MAP, MAP), "copies and fills"),
        ("aten::zero_", (MAP,), "copies and fills"),
        ("_FusedBackward", (MAP,), "Python, autograd and the rest"),
        ("aten::empty", ([],), "Python, autograd and the rest"),
    ],
)
def test_every_operator_has_its_part(name, shapes, part):
    assert profile_steps.part_of(name, shapes, IMAGE) == part


def test_parts_add_up_to_the_step():
    net = _models.nets("sae-3", image_size=16, blocks=3, width=16, latent_dim=3)["strucfast"]
    step_ms, parts = profile_steps.profile(net.training_step(4, torch.float32), net.module.image_shape)
    assert sum(part["ms"] for part in parts) == pytest.approx(step_ms, rel=0.02)
    assert sum(part["share"] for part in parts) == pytest.approx(1.0, abs=0.01)
    assert {"convolution", "normalisation, activation, affine", "loss", "optimizer"} <= {p["name"] for p in parts}


def test_written_file_keeps_the_other_models(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    shares = [{"name": "convolution", "ms": 1.0, "share": 1.0}]
    monkeypatch.setattr(profile_steps, "profile", lambda step, image: (1.0, shares))
    monkeypatch.setattr(_models.Net, "training_step", lambda net, batch, dtype: None)
    assert profile_steps.main(["--models", "sae-12", "--dtypes", "float32"]) == 0
    assert profile_steps.main(["--models", "beta-tcvae", "--dtypes", "float32"]) == 0
    (path,) = (tmp_path / "profiles").glob("*.json")
    found = json.loads(path.read_text())["profiles"]
    assert [(row["model"], row["provider"]) for row in found] == [
        ("sae-12", "strucfast"),
        ("sae-12", "channels_last"),
        ("beta-tcvae", "strucfast"),
        ("beta-tcvae", "channels_last"),
    ]
    path.write_text("{}")
    with pytest.raises(SystemExit, match="is no file of profiles"):
        profile_steps.main(["--models", "sae-12", "--dtypes", "float32"])


@pytest.mark.parametrize("name", _models.NAMES)
def test_plain_nets_compute_the_same(name):
    nets = _models.nets(name, image_size=16, blocks=12, width=16)
    _models.check_losses(nets, torch.float32, batch=4)
    _models.check_codes(nets, torch.float32, batch=4)


def test_another_net_is_noticed():
    nets = _models.nets("sae-3", image_size=16, blocks=3, width=16, latent_dim=3)
    with torch.no_grad():
        nets["eager"].module.output.bias.add_(0.1)
    with pytest.raises(AssertionError, match="eager: its loss"):
        _models.check_losses(nets, torch.float32, batch=4)
    with torch.no_grad():
        nets["channels_last"].module.head.bias.add_(0.1)
    with pytest.raises(AssertionError, match="channels_last: its codes"):
        _models.check_codes(nets, torch.float32, batch=4)
