import json

import numpy as np
import pytest
import torch

from strucfast.training import CheckpointError, ConfigError, Run, RunFolderError, Trainer


@pytest.fixture
def run(tiny, tmp_path):
    return Trainer(tiny(train__steps=4, train__eval_every=0), tmp_path / "run").fit()


def test_what_a_run_offers(run):
    assert run.config.train.steps == 4
    assert len(run.history()) == 3
    assert run.seeds == []
    assert run.evaluation() is None
    assert run.dataset().image_shape == (32, 32, 3)
    train, validation, test = run.splits()
    assert len(np.intersect1d(train, test)) == 0
    assert (len(train), len(validation), len(test)) == (336_000, 48_000, 96_000)
    model = run.load_model()
    assert not model.training
    x = torch.zeros(2, 3, 32, 32)
    assert model.encode(x).mean.shape == (2, 4)


def test_both_checkpoints_are_loadable_models(run):
    from strucfast import models

    for which in ("best", "last"):
        ours = run.load_model(which)
        plain = models.load(run.checkpoint(which))
        assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), plain.state_dict().values()))
    with pytest.raises(ValueError, match="which: expected 'best' or 'last', got 'worst'"):
        run.load_model("worst")


def test_no_run(tmp_path):
    with pytest.raises(RunFolderError, match=r"no run there .config\.yaml is missing."):
        Run(tmp_path)
    (tmp_path / "config.yaml").write_text("train: {steps: many}")
    with pytest.raises(ConfigError, match=r"config\.yaml: train\.steps: expected integer, got 'many'"):
        Run(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(CheckpointError, match=r"best: no checkpoint there \(yet\)"):
        Run(tmp_path).load_model()


def test_corrupt_files_are_named(run):
    path = run.path / "checkpoints" / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"best/model\.safetensors: truncated"):
        run.load_model("best")
    run.load_model("last")
    (run.path / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"evaluation\.json: corrupt"):
        run.evaluation()


def test_a_folder_of_seeds_lists_them(run):
    config = run.config
    config.train.seeds = (1, 2)
    config.save(run.path / "config.yaml")
    for seed in (1, 2):
        (run.path / f"seed-{seed}").mkdir()
        config.save(run.path / f"seed-{seed}" / "config.yaml")
    group = Run(run.path)
    assert [r.path.name for r in group.seeds] == ["seed-1", "seed-2"]
    with pytest.raises(RunFolderError, match=r"holds several runs; choose one of .*seed-1, .*seed-2"):
        group.load_model()


def test_state_json_is_plain(run):
    scalars = json.loads((run.path / "checkpoints" / "last" / "state.json").read_text())
    assert scalars["step"] == 4
    assert set(scalars["files"]) == {"model.safetensors", "state.safetensors", "config.json"}
