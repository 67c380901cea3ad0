import dataclasses
import subprocess
import sys

import pytest

from strucfast.training.config import PAPER_MODELS, ConfigError, TrainConfig, preset, presets


def test_yaml_round_trip_of_every_preset(tmp_path):
    for name in presets():
        config = preset(name)
        config.check()
        config.train.seeds = (3, 5)
        config.save(tmp_path / "config.yaml")
        assert TrainConfig.load(tmp_path / "config.yaml") == config


def test_presets_are_the_models_and_the_demo():
    from strucfast import models

    assert set(PAPER_MODELS) == set(models.list())
    assert set(presets()) == {*models.list(), "demo"}


def test_paper_settings():
    config = preset("sae-12")
    assert (config.model.image_size, config.train.batch_size, config.train.steps) == (64, 128, 100_000)
    assert (config.optim.learning_rate, config.optim.betas) == (5e-4, (0.9, 0.999))
    assert config.data.fractions == (0.7, 0.1, 0.2)
    large = preset("sae-16")
    assert (large.model.image_size, large.train.batch_size, large.train.steps) == (128, 32, 200_000)
    assert preset("adaae-5").model.name == "adaae-5"


def test_unknown_preset_names_near_matches():
    with pytest.raises(ConfigError, match=r"unknown preset 'sae12'; did you mean 'sae-12'"):
        preset("sae12")
    with pytest.raises(ConfigError, match="there are ae, vae"):
        preset("?!")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {learning_rat: 1}", "unknown field optim.learning_rat; did you mean 'learning_rate'"),
        ("trian: {steps: 1}", "unknown field trian; did you mean 'train'"),
        ("optim: {learning_rate: fast}", "optim.learning_rate: expected number, got 'fast'"),
        ("train: {steps: 1.5}", "train.steps: expected integer, got 1.5"),
        ("train: {steps: true}", "train.steps: expected integer, got True"),
        ("train: {compile: 1}", "train.compile: expected true or false, got 1"),
        ("train: {precision: fp8}", "train.precision: expected float32 | bf16, got 'fp8'"),
        ("train: {seeds: [1, x]}", "train.seeds: expected integer, got 'x'"),
        ("optim: {betas: [0.9]}", "optim.betas: expected a list of 2 numbers, got [0.9]"),
        ("model: {channels: three}", "model.channels: expected integer, got 'three'"),
        ("model: {overrides: [1]}", "model.overrides: expected a mapping"),
        ("model: 3", "model: expected a mapping, got int"),
        ("- 1", "the file: expected a mapping, got list"),
        ("a: [", "is not YAML"),
        ("optim: {learning_rate: -1}", "optim.learning_rate: expected a positive number, got -1.0"),
        ("optim: {anneal_by: time}", "train.max_minutes: expected a positive number with optim.anneal_by=time"),
        ("data: {fractions: [0.9, 0.1, 0.2]}", "data.fractions: expected three positive numbers"),
        ("train: {device: gpu}", "train.device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("train: {seeds: [1, 1]}", "train.seeds: expected seeds that differ"),
        ("train: {batch_size: 0}", "train.batch_size: expected at least 1, got 0"),
    ],
)
def test_bad_file_names_file_and_field(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        TrainConfig.load(tmp_path / "none.yaml")


def test_scientific_notation_and_defaults(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("optim: {learning_rate: 5e-4}\nmodel: {channels: null, overrides: {hidden: [4, 5]}}\n")
    config = TrainConfig.load(path)
    assert config.optim.learning_rate == 5e-4
    assert config.model.overrides == {"hidden": [4, 5]}
    assert config.train == TrainConfig().train
    path.write_text("")
    assert TrainConfig.load(path) == TrainConfig()


def test_every_field_has_a_help_text():
    # the command line shows the comment above each field
    import inspect

    for section in dataclasses.fields(TrainConfig):
        kind = type(section.default_factory())
        lines = inspect.getsource(kind).splitlines()
        for field in dataclasses.fields(kind):
            place = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{field.name}:"))
            assert lines[place - 1].strip().startswith("# "), f"{section.name}.{field.name}"


def test_configuration_alone_does_not_load_heavy_modules():
    code = (
        "import sys, strucfast.training.config\n"
        "heavy = {'matplotlib', 'h5py', 'sklearn', 'tensorboard', 'safetensors', 'strucfast.models'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
