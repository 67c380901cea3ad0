"""Saving and loading: the same model back, and a clear error for every kind of bad file."""

import dataclasses
import json
import os

import pytest
import safetensors.torch
import torch

import strucfast as sf

TINY = {"image_size": 8, "width": 8, "blocks": 2, "latent_dim": 4}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    sf.models.build("sae-2", **TINY, hidden=(4, 4)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["sae-2", "adaae-2", "ae", "beta-vae"])
def test_round_trip(name, tmp_path):
    torch.manual_seed(0)
    model = sf.models.build(name, **TINY, **({"beta": 3.5} if name == "beta-vae" else {}))
    model.save_pretrained(tmp_path / "a" / "b")
    loaded = sf.models.load(tmp_path / "a" / "b")
    assert type(loaded) is type(model) and loaded.name == name and loaded.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
        assert loaded.state_dict()[key].stride() == value.stride()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded.encode(x).mean, model.encode(x).mean)
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["config.json", "model.safetensors"]


def test_float64_stays_float64(tmp_path):
    model = sf.models.build("ae", **TINY).double()
    model.save_pretrained(tmp_path)
    loaded = sf.models.load(tmp_path)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(loaded.parameters(), model.parameters()))


def test_saving_again_replaces_and_a_failed_write_keeps_the_old_file(folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def fail(source, target):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            sf.models.build("sae-2", **TINY).save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    sf.models.build("ae", **TINY).save_pretrained(folder)
    assert sf.models.load(folder).name == "ae"


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        sf.models.load(folder)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle in a zip", os.urandom(64)])
def test_foreign_weights(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        sf.models.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.base"), "tensor 'decoder.base' is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "tensor 'extra' is none of model 'sae-2'"),
        (
            lambda t: t.update({"decoder.base": torch.zeros(8, 2, 2)}),
            r"tensor 'decoder.base' must have shape \(8, 4, 4\), got \(8, 2, 2\)",
        ),
        (lambda t: t.update({"decoder.base": t["decoder.base"].int()}), "tensor 'decoder.base' must be floating point"),
        (lambda t: t.clear(), "tensor .* is missing"),
    ],
)
def test_wrong_tensors(folder, change, message):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ValueError, match=f"model.safetensors: {message}"):
        sf.models.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format="other"), "field 'format' must be 'strucfast.model', got 'other'"),
        (lambda h: h.pop("format"), "field 'format'"),
        (lambda h: h.update(version=99), "field 'version' must be 1, got 99"),
        (lambda h: h.pop("name"), "field 'name' must be a string, got None"),
        (lambda h: h.update(name="sae-x"), "unknown model 'sae-x'"),
        (lambda h: h.update(config=[]), "field 'config' must be an object"),
        (lambda h: h["config"].update(depth=3), "'depth' is no field of SAEConfig"),
        (lambda h: h["config"].update(width="8"), "width must be int, got '8'"),
        (lambda h: h["config"].update(width=-8), "width must be >= 1, got -8"),
    ],
)
def test_wrong_config(folder, change, message):
    path = folder / "config.json"
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        sf.models.load(folder)


def test_a_field_that_was_added_later_takes_its_default(tmp_path):
    model = sf.models.build("beta-vae", **TINY)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    header = json.loads(path.read_text())
    del header["config"]["beta"]
    path.write_text(json.dumps(header))
    default = next(f.default for f in dataclasses.fields(model.config) if f.name == "beta")
    assert sf.models.load(tmp_path).config == dataclasses.replace(model.config, beta=default)
    # A field whose default does not fit the weights is found by them.
    del header["config"]["width"]
    path.write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor"):
        sf.models.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_config_that_is_no_config(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        sf.models.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        sf.models.load(folder)


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(FileExistsError, match="taken"):
        sf.models.build("ae", **TINY).save_pretrained(tmp_path / "taken")
