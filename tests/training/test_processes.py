"""Data parallel training of models that compare images, have two optimizers or two stages: two real processes."""

import subprocess
import sys

import pytest
import torch

from strucfast import models
from strucfast.training import Run, Trainer, engine
from strucfast.training.distributed import leave
from strucfast.training.folder import FIRST_STAGE
from tests.training.test_kill import ENVIRONMENT

NETS = {"width": 8, "blocks": 3, "latent_dim": 4}
BATCH, LATENT = 4, NETS["latent_dim"]


def share_noise(monkeypatch):
    """Noise by the image's place in the batch of all processes, so that it is the same however they share it."""
    step_seed = engine.step_seed
    monkeypatch.setattr(engine, "step_seed", lambda seed, step, rank=0: step_seed(seed, step))

    def reparametrise(mean, logvar, generator):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        noise = torch.randn(8 * BATCH, LATENT)[rank * BATCH :][: len(mean)]
        return mean + torch.exp(0.5 * logvar) * noise

    monkeypatch.setattr(models.VAE, "_reparametrise", staticmethod(reparametrise))


def worker(folder):
    """One of the two processes; the names of the configurations are those of the runs."""
    import pathlib

    from strucfast.training import TrainConfig

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        share_noise(patch)
        for path in sorted(pathlib.Path(folder).glob("*.yaml")):
            trainer = Trainer(TrainConfig.load(path), path.with_suffix(""))
            trainer.fit()
            # neither process went without the kept images
            assert (trainer._cache is not None) == (path.stem == "ms-vae")
            sums = torch.stack([p.detach().double().sum() for p in trainer.engine.parameters])
            everywhere = [torch.empty_like(sums) for _ in range(2)]
            torch.distributed.all_gather(everywhere, sums)
            assert torch.equal(*everywhere), path.stem
    leave()


def test_two_processes_equal_one_with_the_doubled_batch(tiny, tmp_path, monkeypatch):
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed: install one that has it")
    models.build("vae", image_size=32, **NETS).save_pretrained(tmp_path / "first")
    extra = {
        # their terms depend on all images of the doubled batch
        "beta-tcvae": {},
        "hfvae": {},
        # a second optimizer
        "factor-vae": {"discriminator_width": 16, "discriminator_layers": 2},
        # one file of first-stage images for both processes
        "ms-vae": {"decoder_width": 4, "stage1": str(tmp_path / "first")},
    }
    names = list(extra)
    changes = {"train__batch_size": BATCH, "train__steps": 6, "optim__learning_rate": 1e-3, "log__every": 1}
    configs = {n: tiny(model__name=n, model__overrides={**NETS, **extra[n]}, **changes) for n in names}
    for name, config in configs.items():
        config.train.eval_every, config.train.eval_images, config.optim.ema = 3, 9, 0.5
        config.save(tmp_path / f"{name}.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.training.test_processes", str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ms-vae" / FIRST_STAGE).exists()
    assert "first stage: kept in" in (tmp_path / "ms-vae" / "run.log").read_text()
    share_noise(monkeypatch)
    for name, config in configs.items():
        config.train.batch_size = 2 * BATCH
        Trainer(config, tmp_path / "one" / name).fit()
        two, one = (Run(folder / name).history() for folder in (tmp_path, tmp_path / "one"))
        assert [(r["step"], r["split"]) for r in two] == [(r["step"], r["split"]) for r in one]
        records = [(a, b) for a, b in zip(two, one) if a["split"] == "train"]
        assert len(records) == 6 and records[0][0].keys() == records[0][1].keys()
        for a, b in records:
            for term in ("loss", "reconstruction", "kl", "total_correlation", "between_groups"):
                # the discriminator is trained on permutations that each process draws for itself
                if term in a and name != "factor-vae":
                    assert a[term] == pytest.approx(b[term], rel=1e-4, abs=1e-4), (name, a["step"], term)
        if name == "factor-vae":
            assert records[0][0]["loss"] == pytest.approx(records[0][1]["loss"], rel=1e-5)
            assert "optimizer_1.discriminator" in records[0][0]


if __name__ == "__main__":
    worker(sys.argv[1])
