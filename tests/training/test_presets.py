"""Every preset from end to end on procedural images: it trains, its loss falls, its report opens, it samples.

At 16 px and a few channels; STRUCFAST_FULL=1 takes every preset of every family at 32 px instead.
"""

import os

import numpy as np
import pytest
import torch

from strucfast import cli, data, models
from strucfast.plots.curves import distinct_terms, history_terms
from strucfast.training import Trainer, preset
from tests.plots.test_report import Page

FULL = os.environ.get("STRUCFAST_FULL") == "1"
SIZE, STEPS = (32 if FULL else 16), 200
CONVOLUTIONAL = {"width": 8, "blocks": 3, "latent_dim": 6}
# What a family needs else at this size.
FAMILIES = {
    "vlae": {"blocks": 6, "latent_dim": 12},
    "sae": {"blocks": 6, "latent_dim": 12, "hidden": [8]},
    "adaae": {"blocks": 6, "latent_dim": 12, "hidden": [8]},
    "isa": {"width": 32, "latent_dim": 6, "sizes": [2, 2, 2]},
    "ms": {"latent_dim": 2, "decoder_width": 4},
    "factor": {"discriminator_width": 32, "discriminator_layers": 2},
}
# Those of the first release are trained by the other tests of this folder.
EARLIER = ("ae", "vae", "beta-vae", "sae", "adaae")


def names():
    """One preset of each numbered family, and every other; all of them in the full sweep."""
    found = models.list()
    if FULL:
        return [name for name in found if not name.endswith(("-12", "-16"))]
    plain = [name for name in found if not name.rpartition("-")[2].isdigit()]
    numbered = [name for name in found if name.endswith("-3")]
    return [name for name in [*plain, *numbered] if name not in EARLIER and name.partition("-")[0] not in EARLIER]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A file of 600 procedural images with their factors."""
    source = data.Shapes3D(image_size=32)
    rows = np.sort(np.random.default_rng(0).choice(len(source), 600, replace=False))
    path = tmp_path_factory.mktemp("data") / "shapes.npz"
    np.savez(path, images=source.images(rows), factors=source.factors(rows))
    return path


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reduced(name, images, **overrides):
    """The preset's own configuration, made small."""
    config = preset(name)
    config.model.image_size = SIZE
    config.model.overrides |= {**CONVOLUTIONAL, **FAMILIES.get(name.partition("-")[0], {}), **overrides}
    config.data.spec, config.data.workers = str(images), 0
    config.train.steps, config.train.batch_size = STEPS, 16
    config.train.eval_every, config.train.eval_images, config.train.checkpoint_every = 0, 33, STEPS
    config.train.device, config.train.threads = "cpu", 1
    config.optim.learning_rate = max(config.optim.learning_rate, 1e-3)
    config.log.every, config.log.progress, config.log.tensorboard = 1, "none", False
    return config


@pytest.fixture(scope="module")
def stage1(images, tmp_path_factory):
    """A first stage for the presets that need one."""
    config = reduced("vae", images, latent_dim=2)
    config.train.steps = 60
    return str(Trainer(config, tmp_path_factory.mktemp("stage1") / "run").fit().path)


@pytest.mark.parametrize("name", names())
def test_preset_from_end_to_end(name, images, stage1, tmp_path, capsys):
    config = reduced(name, images, **({"stage1": stage1} if name.startswith("ms-") else {}))
    run = Trainer(config, tmp_path / "run").fit()
    records = [record for record in run.history() if record["split"] == "train"]
    losses = np.array([record["loss"] for record in records])
    assert len(losses) == STEPS and np.isfinite(losses).all()
    assert losses[-20:].mean() < 0.97 * losses[:20].mean()
    folder = str(run.path)
    assert cli.main(["report", folder]) == 0
    page = Page((run.path / "report.html").read_text())
    assert f"{name} on " in page.text
    # each term of the loss has its curve
    terms = set(distinct_terms(history_terms(run.history())))
    # some have nothing but a reconstruction term, which is the loss
    assert len(terms) >= (1 if name.partition("-")[0] in ("ae", "sae", "adaae") else 3)
    for term in terms:
        assert term.replace("_", " ").replace(".", ": ") in page.text, term
    assert cli.main(["sample", folder, "--num", "4", "--stored", "40"]) == 0
    assert (run.path / "samples.png").read_bytes()[:4] == b"\x89PNG"
    model = run.load_model("last")
    prior = ["sample", folder, "--num", "4", "--sampler", "prior", "--out", str(tmp_path / "prior.png")]
    assert cli.main(prior) == (0 if model.has_prior else 2)
    assert (tmp_path / "prior.png").exists() == model.has_prior
    assert cli.main(["traverse", folder, "--steps", "3", "--stored", "40"]) == 0
    assert "error" not in capsys.readouterr().err.replace("error: model must have a prior", "")


def test_every_preset_shows_its_settings(capsys):
    cli.main(["--help"])
    listed = capsys.readouterr().out
    for name in models.list():
        assert name in listed
        assert preset(name).model.name == name


@pytest.mark.parametrize("name", ["beta-tcvae", "ms-vae", "isa-vae"])
def test_help_of_a_preset_shows_its_own_settings(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    config = preset(name)
    assert name in text and str(config.optim.learning_rate) in text and str(config.train.batch_size) in text
