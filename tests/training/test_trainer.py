import errno
import math
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from strucfast import data, models
from strucfast.training import CheckpointError, ConfigError, NonFinite, Run, RunFolderError, Trainer, checkpoint


def weights(run, which="last"):
    saved = checkpoint.load(run.path / "checkpoints" / which)
    return {**saved.model, **saved.state}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps_of(run, split="train"):
    return [record["step"] for record in run.history() if record["split"] == split]


def test_a_run_and_what_it_leaves(tiny, tmp_path):
    run = Trainer(tiny(log__tensorboard=True), tmp_path / "run").fit()
    names = {path.name for path in run.path.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "run.log", "tensorboard", "checkpoints"} <= names
    assert steps_of(run) == [3, 6, 9, 12]
    assert steps_of(run, "validation") == [6, 12]
    record = run.history()[0]
    assert {"step", "split", "loss", "reconstruction", "images_per_s", "seconds", "learning_rate"} <= set(record)
    assert record["images_per_s"] > 0
    log = (run.path / "run.log").read_text()
    for text in ("threads: 1", "allocator: ", "channels_last", "precision: float32", "shapes3d", "done: 12 steps"):
        assert text in log
    assert run.config.model.channels == 3
    assert run.scalars("last")["step"] == 12
    best = min(r["loss"] for r in run.history() if r["split"] == "validation")
    assert run.scalars("best")["best_loss"] == pytest.approx(best)


def test_it_learns(tiny, tmp_path):
    config = tiny(train__steps=80, train__eval_every=20, optim__learning_rate=5e-3)
    run = Trainer(config, tmp_path / "run").fit()
    losses = [record["loss"] for record in run.history() if record["split"] == "validation"]
    assert losses[-1] < losses[0] - 50


@pytest.mark.parametrize("name", ["sae-2", "vae"])
def test_same_seed_same_run_whatever_came_before(tiny, tmp_path, name):
    options = {"width": 8, "blocks": 3, "latent_dim": 4}
    config = tiny(model__name=name, model__overrides=options)
    one = Trainer(config, tmp_path / "one").fit()
    torch.manual_seed(77)
    torch.rand(3)
    two = Trainer(config, tmp_path / "two").fit()
    assert same(weights(one), weights(two))
    config.train.seed = 1
    three = Trainer(config, tmp_path / "three").fit()
    assert not same(weights(one), weights(three))


def test_the_callers_random_numbers_are_left_alone(tiny, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    Trainer(tiny(), tmp_path / "run").fit()
    assert torch.equal(torch.rand(4), expected)


class StopsAt:
    """Sends this process a signal when a batch of a given step is asked for."""

    def __init__(self, step, number=signal.SIGINT, image_size=32):
        self.dataset = data.Shapes3D(image_size=image_size)
        self.left, self.number = step, number

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def images(self, indices, out=None):
        if out is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)
        return self.dataset.images(indices, out=out)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sae-2", {}),
        ("vae", {"optim__ema": 0.9, "optim__schedule": "cosine", "optim__warmup_steps": 3, "optim__grad_clip": 50.0}),
        ("sae-2", {"train__precision": "bf16", "data__workers": 0}),
    ],
)
def test_resumed_run_equals_the_uninterrupted_bit_for_bit(tiny, tmp_path, name, changes):
    overrides = {"width": 8, "blocks": 3, "latent_dim": 4}
    config = tiny(model__name=name, model__overrides=overrides, **changes)
    whole = Trainer(config, tmp_path / "whole").fit()
    stopped = Trainer(config, tmp_path / "parts", dataset=StopsAt(5))
    run = stopped.fit()
    assert stopped.interrupted == signal.SIGINT
    assert 0 < run.scalars("last")["step"] < 12
    again = Trainer(run.config, run.path, resume=True)
    assert again.step == run.scalars("last")["step"]
    again.fit()
    assert same(weights(whole), weights(run))
    assert same(weights(whole, "best"), weights(run, "best"))
    columns = ("step", "split", "loss")
    validation = [[[r[c] for c in columns] for r in x.history() if r["split"] == "validation"] for x in (whole, run)]
    assert validation[0] == validation[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_step_and_say_how_to_go_on(tiny, tmp_path, number):
    before = signal.getsignal(number)
    trainer = Trainer(tiny(data__workers=0), tmp_path / "run", dataset=StopsAt(3, number))
    run = trainer.fit()
    assert trainer.interrupted == number
    # with workers=0 the third batch is drawn in the third step
    assert run.scalars("last")["step"] == 3
    log = (run.path / "run.log").read_text()
    name = signal.Signals(number).name
    assert f"stopped by {name} after step 3" in log
    assert f"strucfast train {run.path} --resume" in log
    assert signal.getsignal(number) is before


def test_fit_in_another_thread(tiny, tmp_path):
    trainer = Trainer(tiny(), tmp_path / "run")
    thread = threading.Thread(target=trainer.fit)
    thread.start()
    thread.join(60)
    assert Run(tmp_path / "run").scalars("last")["step"] == 12


def test_resume_goes_on_to_more_steps_and_says_when_there_is_nothing_to_do(tiny, tmp_path):
    run = Trainer(tiny(), tmp_path / "run").fit()
    finished = weights(run)
    Trainer(run.config, run.path, resume=True).fit()
    assert same(finished, weights(run))
    assert "nothing to do: the run has 12 steps" in (run.path / "run.log").read_text()
    config = run.config
    config.train.steps = 16
    Trainer(config, run.path, resume=True).fit()
    assert Run(run.path).scalars("last")["step"] == 16
    whole = Trainer(tiny(train__steps=16), tmp_path / "whole").fit()
    assert same(weights(run), weights(whole))


def test_history_after_resume_has_each_step_once(tiny, tmp_path):
    run = Trainer(tiny(), tmp_path / "run").fit()
    path = run.path / "metrics.jsonl"
    # as a kill -9 leaves it: ahead of the checkpoint, and torn
    saved = checkpoint.load(run.path / "checkpoints" / "last")
    saved.scalars["step"] = 8
    checkpoint.save(run.path / "checkpoints" / "last", saved)
    path.write_text(path.read_text() + '{"step": 99, "spl')
    Trainer(run.config, run.path, resume=True).fit()
    assert steps_of(run) == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model", "name", "sae-3"), "model.name: cannot change on resume: the run has 'sae-2', got 'sae-3'"),
        (("train", "batch_size", 4), "train.batch_size: cannot change on resume: the run has 8, got 4"),
        (("train", "seed", 4), "train.seed: cannot change on resume"),
        (("data", "fractions", (0.5, 0.1, 0.2)), "data.fractions: cannot change on resume"),
        (("optim", "ema", 0.9), "optim.ema: cannot be turned on or off on resume"),
    ],
)
def test_what_cannot_change_on_resume(tiny, tmp_path, change, message):
    run = Trainer(tiny(train__steps=1), tmp_path / "run").fit()
    config = Run(run.path).config
    section, field, value = change
    setattr(getattr(config, section), field, value)
    with pytest.raises(ConfigError, match=message):
        Trainer(config, run.path, resume=True)


def test_corrupt_checkpoint_on_resume(tiny, tmp_path):
    run = Trainer(tiny(train__steps=4), tmp_path / "run").fit()
    path = run.path / "checkpoints" / "last" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"last/state\.safetensors: truncated: expected \d+ bytes"):
        Trainer(run.config, run.path, resume=True)


def test_killed_before_the_first_checkpoint_starts_again(tiny, tmp_path):
    config = tiny()
    path = tmp_path / "run"
    path.mkdir()
    trainer = Trainer(config, tmp_path / "whole")
    whole = trainer.fit()
    trainer.config.save(path / "config.yaml")
    run = Trainer(trainer.config, path, resume=True).fit()
    assert same(weights(run), weights(whole))


class Breaks:
    """A model whose loss or weights break in a given step."""

    def __init__(self, step, what, name="vae", term="kl"):
        torch.manual_seed(0)
        self.model = models.build(name, image_size=32, width=8, blocks=3, latent_dim=4)
        self.calls, loss = 0, self.model.loss

        def broken(x, **options):
            result = loss(x, **options)
            if torch.is_grad_enabled() and term in result.terms:
                self.calls += 1
                if self.calls == step and what == "loss":
                    result.terms[term].fill_(math.nan)
                    # as the whole would be
                    result.total.data.fill_(math.nan)
                if self.calls == step and what == "weights":
                    next(self.model.parameters()).data.fill_(math.inf)
            return result

        self.model.loss = broken


@pytest.mark.parametrize(
    ("name", "term", "said"),
    [
        ("vae", "kl", "kl"),
        ("beta-tcvae", "total_correlation", "total_correlation"),
        ("factor-vae", "discriminator", "optimizer_1.discriminator"),
    ],
)
def test_nan_stops_with_step_and_term_and_keeps_the_last_good_checkpoint(tiny, tmp_path, name, term, said):
    trainer = Trainer(tiny(model__name=name), tmp_path / "run", model=Breaks(7, "loss", name, term).model)
    with pytest.raises(NonFinite, match=rf"step 7: {said} is nan; last good checkpoint: step 4 in .*checkpoints/last"):
        trainer.fit()
    run = Run(tmp_path / "run")
    assert run.scalars("last")["step"] == 4
    assert all(torch.isfinite(t).all() for t in weights(run).values())
    assert f"stopped: step 7: {said} is nan" in (run.path / "run.log").read_text()


def test_broken_weights_are_never_saved(tiny, tmp_path):
    config = tiny(model__name="vae", train__eval_every=0)
    trainer = Trainer(config, tmp_path / "run", model=Breaks(4, "weights").model)
    with pytest.raises(NonFinite, match=r"step [45]: .*; last good checkpoint: none was written yet"):
        trainer.fit()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_existing_run_is_refused(tiny, tmp_path):
    run = Trainer(tiny(train__steps=2), tmp_path / "run").fit()
    before = weights(run)
    with pytest.raises(RunFolderError, match="holds a run already"):
        Trainer(tiny(train__steps=2), run.path)
    assert same(before, weights(run))
    Trainer(tiny(train__steps=3), run.path, overwrite=True).fit()
    assert run.scalars("last")["step"] == 3


def test_nothing_is_left_behind_when_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="unknown model 'sea-2'"):
        Trainer(tiny(model__name="sea-2"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.steps: expected at least 1, got 0"):
        Trainer(tiny(train__steps=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unwritable_run_folder(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write to the run folder"):
        Trainer(tiny(), tmp_path / "file" / "run")


def test_full_disk_while_training_keeps_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    from strucfast.training import _files

    written, write = [], _files.write_synced

    def write_until_full(path, content):
        written.append(path)
        # the run folder's own files, then four files of the first checkpoint
        if sum(p.name == "model.safetensors" for p in written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(_files, "write_synced", write_until_full)
    with pytest.raises(RunFolderError, match=r"cannot write .*checkpoints/best: No space left on device"):
        Trainer(tiny(), tmp_path / "run").fit()
    run = Run(tmp_path / "run")
    assert run.scalars("last")["step"] == 4
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["last"]


class Own:
    """A user's own data set."""

    name, factor_names, factor_sizes = "own", (), ()

    def __init__(self, dtype=np.uint8, shape=(32, 32, 3), count=40, high=200):
        self.image_shape, self.dtype, self.count, self.high = shape, dtype, count, high

    def __len__(self):
        return self.count

    def images(self, indices, out=None):
        images = np.full((len(indices), *self.image_shape), self.high, self.dtype)
        if out is not None:
            out[:] = images
        return images


@pytest.mark.parametrize(
    ("dataset", "kind", "message"),
    [
        (Own(np.int64), TypeError, r"expected uint8, or floating point in \[0, 1\], got torch\.int64"),
        (Own(np.float32), ValueError, r"expected values in \[0, 1\], got \[200, 200\]"),
        (Own(np.float32, high=1), TypeError, "own: expected uint8 images, got float32"),
        (Own(shape=(64, 64, 3)), ValueError, "model.image_size: expected the data's 64x64, got 32x32"),
        (Own(count=2), ValueError, r"leaves no row for|is empty"),
        (Own(count=0), ValueError, r"leaves no row for|is empty"),
    ],
)
def test_data_that_does_not_fit(tiny, tmp_path, dataset, kind, message):
    with pytest.raises(kind, match=message):
        Trainer(tiny(), tmp_path / "run", dataset=dataset)
    assert not (tmp_path / "run").exists()


def test_channels_are_those_of_the_data(tiny, tmp_path):
    run = Trainer(tiny(train__steps=2), tmp_path / "grey", dataset=Own(shape=(32, 32, 1))).fit()
    assert run.load_model("last").image_shape == (1, 32, 32)
    with pytest.raises(ValueError, match="expected 4 channels"):
        Trainer(tiny(model__channels=4), tmp_path / "four", dataset=Own())


def test_validation_uses_all_of_its_images_once_and_the_averaged_weights(tiny, tmp_path):
    trainer = Trainer(tiny(optim__ema=0.9, train__eval_images=19), tmp_path / "run")
    trainer.fit()
    indices = trainer._validation_indices()
    assert len(indices) == 19
    assert set(indices) <= set(trainer.splits[1])
    model = Run(tmp_path / "run").load_model("last")
    x = torch.from_numpy(trainer.dataset.images(indices)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = float(model.loss(x).total)
    assert trainer.validate()["loss"] == pytest.approx(expected, rel=1e-5)


def test_no_piece_of_the_validation_holds_a_single_image(tiny, tmp_path, monkeypatch):
    trainer = Trainer(tiny(train__eval_images=17), tmp_path / "run")
    sizes, evaluate = [], trainer.engine.evaluate
    monkeypatch.setattr(trainer.engine, "evaluate", lambda images: sizes.append(len(images)) or evaluate(images))
    trainer.validate()
    assert sizes == [8, 9]


def test_a_run_killed_before_its_first_checkpoint_begins_from_the_data(tiny, tmp_path):
    class Learns(models.VAE):
        said = []

        def begin_training(self, dataset, indices, *, resumed=False):
            self.said.append(resumed)
            super().begin_training(dataset, indices, resumed=resumed)

    def model():
        options = {"image_size": 32, "width": 8, "blocks": 3, "latent_dim": 4}
        return Learns("vae", models.VAEConfig(**options))

    config = tiny(model__name="vae", train__steps=2)
    first = Trainer(config, tmp_path / "run", model=model())
    first._release()
    first.log.close()
    Trainer(config, tmp_path / "run", model=model(), resume=True).fit()
    Trainer(config, tmp_path / "run", model=model(), resume=True)._release()
    assert Learns.said == [False, False, True]


def test_time_limit(tiny, tmp_path):
    config = tiny(train__steps=10**6, train__max_minutes=0.02, optim__schedule="cosine", optim__anneal_by="time")
    config.train.eval_every, config.train.checkpoint_every = 0, 10**6
    began = time.perf_counter()
    run = Trainer(config, tmp_path / "run").fit()
    assert time.perf_counter() - began < 20
    assert "time limit: " in (run.path / "run.log").read_text()
    # the schedule ended with the time
    assert [r for r in run.history() if r["split"] == "train"][-1]["learning_rate"] < 0.1 * config.optim.learning_rate
    assert run.scalars("best")["step"] == run.scalars("last")["step"] > 1


def test_checkpoint_by_the_clock(tiny, tmp_path, monkeypatch):
    saved = []
    config = tiny(train__checkpoint_every=100, train__checkpoint_minutes=1e-9, train__eval_every=0)
    trainer = Trainer(config, tmp_path / "run")
    monkeypatch.setattr(trainer, "_save", lambda path, began: saved.append((path.name, trainer.step)))
    trainer.fit()
    assert [step for name, step in saved if name == "last"][:11] == list(range(1, 12))


def test_several_seeds_are_not_a_trainers_business(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.seeds: a Trainer trains one seed"):
        Trainer(tiny(train__seeds=(1, 2)), tmp_path / "run")


def test_torch_compile(tiny, tmp_path, monkeypatch):
    # the front end alone: the C++ back end takes a minute and is torch's to test
    compiled = []

    def compile_eagerly(function):
        compiled.append(function)
        return torch_compile(function, backend="eager")

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    run = Trainer(tiny(train__compile=True, train__steps=3), tmp_path / "compiled").fit()
    assert len(compiled) == 1
    plain = Trainer(tiny(train__steps=3), tmp_path / "plain").fit()
    a, b = ([r["loss"] for r in x.history()] for x in (run, plain))
    assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make gpu`")
@pytest.mark.parametrize(
    "changes", [{}, {"train__cuda_graph": True, "train__precision": "bf16"}, {"data__on_device": "no"}]
)
def test_on_cuda(tiny, tmp_path, changes):
    config = tiny(train__device="cuda", train__steps=60, train__batch_size=32, optim__ema=0.9, **changes)
    run = Trainer(config, tmp_path / "run").fit()
    losses = [r["loss"] for r in run.history() if r["split"] == "train"]
    assert losses[-1] < losses[0]
    config.train.steps = 70
    Trainer(config, tmp_path / "run", resume=True).fit()
    assert Run(tmp_path / "run").scalars("last")["step"] == 70
