"""Two-stage training: which first stage fits, and its images, computed once, kept, and never half-kept."""

import errno
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from strucfast import models
from strucfast.training import ConfigError, Run, Trainer, evaluate_run
from strucfast.training.first_stage import _HEADER, FirstStageCache
from strucfast.training.folder import FIRST_STAGE
from tests.training.test_kill import start, wait_for, weights
from tests.training.test_trainer import StopsAt, same

NETS = {"width": 8, "blocks": 3}
SHAPE = (4, 4, 3)


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    """The run folder of a short VAE of two latent dims."""
    from strucfast.training.config import preset

    threads = torch.get_num_threads()
    config = preset("vae")
    config.model.image_size, config.model.overrides = 32, {**NETS, "latent_dim": 2}
    config.train.steps, config.train.batch_size, config.train.threads, config.train.device = 40, 16, 1, "cpu"
    config.train.eval_images, config.optim.learning_rate = 16, 3e-3
    config.log.progress, config.log.tensorboard = "none", False
    run = Trainer(config, tmp_path_factory.mktemp("stage1") / "vae").fit()
    torch.set_num_threads(threads)
    return run.path


@pytest.fixture
def second(tiny, stage1):
    """Makes the configuration of a second stage."""

    def make(**changes):
        overrides = {**NETS, "latent_dim": 3, "decoder_width": 4, "stage1": str(stage1)}
        return tiny(model__name="ms-vae", model__overrides=overrides, **changes)

    return make


def counted(monkeypatch):
    """Numbers of images that go through the first stage while training."""
    counts, compute = [], models.MSVAE.stage1_images

    def count(self, images):
        counts.append(len(images))
        return compute(self, images)

    monkeypatch.setattr(models.MSVAE, "stage1_images", count)
    return counts


def cache(folder, key="a", rows=range(10), gigabytes=1.0, **options):
    return FirstStageCache(folder / "cache.bin", key, np.asarray(rows), SHAPE, int(gigabytes * 1e9), **options)


def random_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def test_the_cache_returns_what_was_written(tmp_path):
    kept = cache(tmp_path, rows=[2, 3, 5, 7, 11])
    assert not kept.read(np.array([2, 11]))[1].any()
    images = random_images(2)
    images[1] = 0
    kept.write(np.array([11, 3]), images)
    found, there = kept.read(np.array([3, 5, 11, 3]))
    assert there.tolist() == [True, False, True, True]
    assert np.array_equal(found[[0, 2, 3]], images[[1, 0, 1]])
    assert kept.path.stat().st_size == kept.max_bytes
    # another process of the run, and the next start
    for again in (cache(tmp_path, rows=[2, 3, 5, 7, 11], create=False), cache(tmp_path, rows=[2, 3, 5, 7, 11])):
        assert again.read(np.array([3, 7]))[1].tolist() == [True, False]
    kept.close(remove=True)
    assert not kept.path.exists()


def test_a_half_written_record_does_not_count(tmp_path):
    kept = cache(tmp_path)
    images = random_images(10)
    kept.write(np.arange(10), images)
    size = 4 + images[0].size
    with open(kept.path, "r+b") as file:
        # only the checksum, only the image, a torn image
        for slot, (begin, end) in {2: (4, size), 5: (0, 4), 7: (size // 2, size)}.items():
            file.seek(_HEADER + slot * size + begin)
            file.write(bytes(end - begin))
        # a whole record in the place of another
        file.seek(_HEADER + 1 * size)
        record = file.read(size)
        file.seek(_HEADER + 8 * size)
        file.write(record)
    found, there = cache(tmp_path).read(np.arange(10))
    assert np.flatnonzero(~there).tolist() == [2, 5, 7, 8]
    assert np.array_equal(found[there], images[there])


def test_another_first_stage_or_data_set_starts_afresh(tmp_path):
    cache(tmp_path).write(np.arange(10), random_images(10))
    assert cache(tmp_path).read(np.arange(10))[1].all()
    with pytest.raises(OSError, match="is of another first stage or data set"):
        cache(tmp_path, key="b", create=False)
    assert not cache(tmp_path, key="b").read(np.arange(10))[1].any()
    assert not cache(tmp_path, key="b", rows=range(1, 11)).read(np.arange(1, 11))[1].any()
    (tmp_path / "cache.bin").write_bytes(b"torn")
    assert not cache(tmp_path).read(np.arange(10))[1].any()


def test_disk_use_is_bounded(tmp_path):
    record = 4 + int(np.prod(SHAPE))
    kept = cache(tmp_path, gigabytes=(_HEADER + 3.5 * record) / 1e9)
    images = random_images(10)
    kept.write(np.arange(10), images)
    found, there = kept.read(np.arange(10))
    assert kept.capacity == 3 and there.sum() == 3 and np.array_equal(found[:3], images[:3])
    assert kept.path.stat().st_size == _HEADER + 3 * record


def test_kept_images_change_nothing_and_each_is_computed_once(second, tmp_path, monkeypatch):
    # 24 training images: three steps an epoch
    changes = {"data__fractions": (24 / 480_000, 20 / 480_000, 20 / 480_000), "train__eval_every": 0}
    counts = counted(monkeypatch)
    with_cache = Trainer(second(**changes), tmp_path / "kept").fit()
    assert sum(counts) == 24
    counts.clear()
    without = Trainer(second(**changes, data__first_stage_gb=0.0), tmp_path / "computed").fit()
    assert sum(counts) == 12 * 8
    assert same(weights(with_cache.path), weights(without.path))
    losses = [[r["loss"] for r in run.history()] for run in (with_cache, without)]
    assert losses[0] == losses[1]
    # a finished run needs them no more
    assert not (with_cache.path / FIRST_STAGE).exists()
    assert "first stage: kept in" in (with_cache.path / "run.log").read_text()


def test_resumed_run_equals_the_uninterrupted_bit_for_bit(second, stage1, tmp_path, monkeypatch):
    own = tmp_path / "stage1"
    shutil.copytree(stage1, own)
    config = second(data__fractions=(40 / 480_000, 20 / 480_000, 20 / 480_000), optim__ema=0.9)
    whole = Trainer(config, tmp_path / "whole").fit()
    config.model.overrides["stage1"] = str(own)
    stopped = Trainer(config, tmp_path / "parts", dataset=StopsAt(5))
    run = stopped.fit()
    assert stopped.interrupted == signal.SIGINT and 0 < stopped.step < 12
    path = run.path / FIRST_STAGE
    content = bytearray(path.read_bytes())
    # as a power cut may leave it
    content[_HEADER + 2000 : _HEADER + 9000] = bytes(7000)
    path.write_bytes(content)
    # the first stage is in the checkpoint by now
    shutil.rmtree(own)
    counts = counted(monkeypatch)
    Trainer(run.config, run.path, resume=True).fit()
    assert 0 < sum(counts) < 40
    assert same(weights(whole.path), weights(run.path))
    assert same(*(run_.load_model("best").state_dict() for run_ in (whole, run)))


def test_kill_9_in_the_middle_then_resume(second, tmp_path):
    config = second(train__steps=10**6, train__checkpoint_every=2)
    process = start(config, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last"
    wait_for(last.exists, process)
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=30)
    run = Run(tmp_path / "run")
    step = run.scalars("last")["step"]
    assert step > 0 and (run.path / FIRST_STAGE).exists()
    config = run.config
    config.train.steps, config.train.checkpoint_every = step + 4, 1000
    Trainer(config, run.path, resume=True).fit()
    whole = Trainer(config, tmp_path / "whole").fit()
    assert same(weights(run.path), weights(whole.path))


def test_a_full_disk_costs_the_cache_and_not_the_run(second, tmp_path, monkeypatch):
    writes = []

    def full(self, indices, images):
        writes.append(len(indices))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FirstStageCache, "write", full)
    run = Trainer(second(), tmp_path / "run").fit()
    assert len(writes) == 1 and run.scalars("last")["step"] == 12
    assert "first stage: nothing more is kept (No space left on device)" in (run.path / "run.log").read_text()
    monkeypatch.undo()
    monkeypatch.setattr(FirstStageCache, "_make", lambda self: full(self, [], None))
    run = Trainer(second(), tmp_path / "none").fit()
    assert "first stage: its images are not kept (No space" in (run.path / "run.log").read_text()


def test_overwriting_a_run_removes_its_kept_images(second, tiny, tmp_path):
    stopped = Trainer(second(), tmp_path / "run", dataset=StopsAt(5))
    stopped.fit()
    assert (tmp_path / "run" / FIRST_STAGE).exists()
    Trainer(tiny(train__steps=1), tmp_path / "run", overwrite=True).fit()
    assert not (tmp_path / "run" / FIRST_STAGE).exists()


def test_the_first_stage_must_have_seen_the_same_data(second, stage1, tmp_path):
    for source in (stage1, stage1 / "checkpoints" / "best"):
        config = second(data__spec="dsprites", model__channels=1)
        config.model.overrides["stage1"] = str(source)
        with pytest.raises(ConfigError, match=r"stage1: .* was trained on 'shapes3d', but data.spec is 'dsprites'"):
            Trainer(config, tmp_path / "run")
    config = second(model__image_size=64)
    with pytest.raises(ValueError, match="stage1: expected a model with image_size 64, got 'vae' with 32"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    Trainer(second(data__split_seed=3, train__steps=1), tmp_path / "run").fit()
    assert "warning: stage 1 had another split" in (tmp_path / "run" / "run.log").read_text()


def test_the_command_line_says_what_is_missing(capsys, tmp_path):
    from strucfast import cli

    assert cli.main(["train", "ms-vae", "--out", str(tmp_path / "run")]) == 2
    text = capsys.readouterr().err
    assert "stage1 is missing: train a first stage (strucfast train beta-tcvae)" in text
    assert "--model.overrides stage1=runs/beta-tcvae" in text and text.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_second_stage_lowers_the_error_on_held_out_images(second, stage1, tmp_path):
    config = second(train__steps=150, train__batch_size=16, optim__learning_rate=2e-3, train__eval_every=0)
    config.train.checkpoint_every = 1000
    run = Trainer(config, tmp_path / "two").fit()
    before, after = (evaluate_run(r, num_images=200, metrics=()).psnr for r in (Run(stage1), run))
    assert after > before + 1.0
