"""The training loop: batches, steps, validation, checkpoints, stopping and going on."""

from __future__ import annotations

import dataclasses
import math
import platform
import shlex
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import checkpoint as checkpoints
from .batches import BatchOrder, DeviceBatches, HostBatches, step_seed, to_float
from .config import ConfigError, TrainConfig
from .distributed import join
from .engine import Engine, NonFinite, learning_rate_factor
from .first_stage import FirstStageBatches, FirstStageCache, check_first_stage, open_cache
from .folder import CONFIG, Lock, claim
from .log import History, Progress, RunLog
from .machine import ThreadChooser, cpu_name, describe_allocator, resolve_device, set_threads
from .run import Run


class Trainer:
    """Trains one model into one run folder.

    The same configuration gives the same run, resumed or not: the order of the images and the noise of a step are
    functions of the seed and the step's number.

    Args:
        config: what to train, on what, how.
        run_dir: the run folder; made here.
        resume: go on with the run in ``run_dir`` from its last complete checkpoint.
        overwrite: replace the run in ``run_dir``.
        model, dataset: use these instead of building ``config.model`` and ``config.data``.

    Raises:
        RunFolderError: ``run_dir`` holds a run already, or none to resume, or cannot be written.
        ConfigError, ValueError, TypeError: the configuration or the data cannot be used.
        CheckpointError: the checkpoint to resume from is damaged.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path | str,
        *,
        resume: bool = False,
        overwrite: bool = False,
        model: nn.Module | None = None,
        dataset: Any = None,
    ) -> None:
        config.check()
        if config.train.seeds:
            raise ConfigError("train.seeds: a Trainer trains one seed (train.seed); train_seeds trains several")
        self.config = config = TrainConfig.from_dict(config.to_dict())
        self.folder = Path(run_dir)
        self.device = resolve_device(config.train.device)
        self.world = join(self.device)
        self._threads = set_threads(config.train.threads)
        self.step = 0
        self.seconds = 0.0
        self.best_loss = math.inf
        self.interrupted: int | None = None
        self._saved_step: int | None = None
        self._lock: Lock | None = None
        self._cache: FirstStageCache | None = None
        try:
            self._prepare(resume, overwrite, model, dataset)
        except BaseException:
            self._release()
            raise

    def _prepare(self, resume: bool, overwrite: bool, model: nn.Module | None, dataset: Any) -> None:
        config = self.config
        # a run to go on with is locked before it is read; of a new one, what can be refused is refused before
        # anything is written
        if resume and self.world.is_main:
            self._lock = claim(self.folder, resume=True)
        if dataset is None:
            from .. import data

            dataset = data.build(config.data.spec, image_size=config.model.image_size)
        self.dataset = dataset
        self.splits = _split(dataset, config)
        self._check_images()
        saved = self._read_checkpoint() if resume else None
        self._warning = check_first_stage(config) if saved is None else None
        with torch.random.fork_rng(devices=_cuda_devices(self.device)):
            torch.manual_seed(config.train.seed)
            if model is None:
                from .. import models

                if saved is not None and saved.model_config:
                    # what a new model reads from elsewhere, such as its first stage, may be gone or changed by now
                    model = models.load(self._last)
                else:
                    size, channels = config.model.image_size, config.model.channels
                    model = models.build(
                        config.model.name, image_size=size, channels=channels, **config.model.overrides
                    )
            # Whatever it initialises from the data must be there before the weights are sent to the other processes.
            if hasattr(model, "begin_training"):
                model.begin_training(dataset, self.splits[0], resumed=saved is not None)
            self.engine = Engine(model, config, self.device, self.world)
        self._model_config = _model_config(model)
        if saved is not None:
            self.engine.restore(saved, self._last)
            scalars = saved.scalars
            self.step, self.seconds, self.best_loss = scalars["step"], scalars["seconds"], scalars["best_loss"]
            self._saved_step = self.step

        if self.world.is_main:
            self._lock = self._lock or claim(self.folder, overwrite=overwrite)
            config.save(self.folder / CONFIG)
        self.world.barrier()
        main = self.world.is_main
        self.log = RunLog(self.folder / "run.log" if main else None, echo=main and config.log.progress != "none")
        self._say_hello()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def _last(self) -> Path:
        return self.folder / "checkpoints" / "last"

    def fit(self) -> Run:
        """Train until ``train.steps``, ``train.max_minutes``, Ctrl-C or SIGTERM.

        Returns:
            The run. ``self.interrupted`` is the number of the signal that ended it, if one did.

        Raises:
            NonFinite: a loss term or a parameter became NaN or infinite; the last good checkpoint is kept.
            RunFolderError: the run folder can no longer be written; the last complete checkpoint is kept.
        """
        history = None
        try:
            if self.world.is_main:
                history = History(self.folder, self.step, self.config.log.tensorboard, self.log)
            # the caller's random numbers stay as they were
            with torch.random.fork_rng(devices=_cuda_devices(self.device)), _Signals() as signals:
                self._loop(history, signals)
        except NonFinite as error:
            kept = "none was written yet" if self._saved_step is None else f"step {self._saved_step} in {self._last}"
            self.log.info(f"stopped: {error}", echo=False)
            raise NonFinite(f"{error}; last good checkpoint: {kept}") from None
        finally:
            if history is not None:
                history.close()
            self.log.close()
            self._release()
        self.world.barrier()
        return Run(self.folder)

    def validate(self) -> dict[str, float]:
        """The loss and its terms on (the used part of) the validation split, with the weights to evaluate with."""
        seed, size = self.config.train.seed, self.config.train.batch_size
        indices = self._validation_indices()
        pieces = [indices[i : i + size] for i in range(0, len(indices), size)]
        if len(pieces) > 1 and len(pieces[-1]) == 1:
            # terms that compare the images of a batch need two
            pieces[-2:] = [np.concatenate(pieces[-2:])]
        sums: dict[str, float] = {}
        count = 0
        with self.engine.averaged_weights():
            # every process takes every size-th piece
            for number in range(self.world.rank, len(pieces), self.world.size):
                # the same noise each time, so that two validations differ by the weights alone
                torch.manual_seed(step_seed(seed, number, -1))
                images = torch.from_numpy(self.dataset.images(pieces[number])).to(self.device)
                for name, value in self.engine.evaluate(images).items():
                    sums[name] = sums.get(name, 0.0) + value * len(images)
                count += len(images)
        if self.world.size > 1:
            gathered: list[Any] = [None] * self.world.size
            torch.distributed.all_gather_object(gathered, (sums, count))
            count = sum(part[1] for part in gathered)
            names = gathered[0][0]
            sums = {name: sum(part[0].get(name, 0.0) for part in gathered) for name in names}
        return {name: value / count for name, value in sums.items()}

    def _loop(self, history: History | None, signals: _Signals) -> None:
        train, every = self.config.train, self.config.log.every
        limit = 60 * train.max_minutes
        if self.step >= train.steps or (limit and self.seconds >= limit):
            self.log.info(f"nothing to do: the run has {self.step} steps and {self.seconds / 60:.1f} minutes already")
            return
        began = time.perf_counter() - self.seconds
        progress = Progress(
            self.config.log.progress if self.world.is_main else "none", self.step, train.steps, self.log, limit
        )
        batches = self._batches()
        # reading a GPU's loss makes it wait, so there it is read once per log line; nothing is lost, see _read
        read_every = 1 if self.device.type == "cpu" else every
        pending: list[torch.Tensor] = []
        sums = np.zeros(0)
        summed, lost_time, line_began = 0, 0.0, time.perf_counter()
        rate, last_saved, validated = 0.0, time.perf_counter(), -1
        time_up = False
        chooser = None
        if self.device.type == "cpu" and self.config.optim.anneal_by == "time" and self._threads > 1:
            # such a run is not reproducible anyway
            chooser = ThreadChooser(self._threads) if train.threads == 0 else None
        try:
            while self.step < train.steps and not time_up and not self.interrupted:
                images = batches.next()
                used = (time.perf_counter() - began) / limit if limit else 0.0
                factor = learning_rate_factor(self.config.optim, train.steps, self.step, used)
                step_began = time.perf_counter()
                pending.append(self.engine.step(images, self.step, factor))
                changed = chooser.record(time.perf_counter() - step_began) if chooser is not None else None
                if changed is not None:
                    self.log.info(f"step {self.step + 1}  threads: {changed}, quicker now", echo=False)
                self.step += 1
                ending = self.step == train.steps
                log_due = ending or self.step % every == 0
                eval_due = train.eval_every > 0 and self.step % train.eval_every == 0
                save_due = self.step % train.checkpoint_every == 0
                read = log_due or eval_due or save_due or self.step % read_every == 0
                if not read and not (signals.received and self.world.size == 1):
                    continue
                over = bool(limit) and time.perf_counter() - began >= limit
                rows, stop, time_up = self._read(pending, signals.received, over)
                pending = []
                self.interrupted = stop or None
                sums = rows.sum(0) + (sums if summed else 0)
                summed += len(rows)
                now = time.perf_counter()
                rate = summed * train.batch_size * self.world.size / max(now - line_began - lost_time, 1e-9)
                self.seconds = now - began
                progress.update(self.step, float(rows[-1, 0]), rate, self.seconds)
                if log_due or time_up or self.interrupted:
                    means = dict(zip(self.engine.term_names, (sums / summed).tolist(), strict=True))
                    record = {"step": self.step, "split": "train", **means}
                    record |= {"learning_rate": self.config.optim.learning_rate * factor}
                    self._write(history, record | {"images_per_s": rate, "seconds": self.seconds})
                    summed, lost_time, line_began = 0, 0.0, now
                paused = time.perf_counter()
                if eval_due:
                    self._validate_and_keep_best(history, began)
                    validated = self.step
                minutes = (time.perf_counter() - last_saved) / 60
                by_clock = self.world.is_main and 0 < train.checkpoint_minutes <= minutes
                if save_due or by_clock:
                    self._save(self._last, began)
                    last_saved = time.perf_counter()
                lost_time += time.perf_counter() - paused
        finally:
            torch.set_num_threads(self._threads)
            batches.close()
            progress.close()
            if self._cache is not None:
                self._cache.close(remove=self.world.is_main and self.step >= train.steps)
        if not self.interrupted and validated != self.step:
            self._validate_and_keep_best(history, began)
        if self._saved_step != self.step:
            self._save(self._last, began)
        if self.interrupted:
            name = signal.Signals(self.interrupted).name
            again = f"strucfast train {shlex.quote(str(self.folder))} --resume"
            self.log.info(f"stopped by {name} after step {self.step}, checkpoint written; go on with: {again}")
        else:
            reason = "time limit" if self.step < train.steps else "done"
            best = f"best validation loss {self.best_loss:.6g}"
            self.log.info(f"{reason}: {self.step} steps in {self.seconds:.1f} s, {best}")

    def _read(self, pending: list[torch.Tensor], stop: int, time_up: bool) -> tuple[np.ndarray, int, bool]:
        """The terms (steps, T) of the steps since the last read, and whether to stop, agreed between the processes."""
        rows = torch.stack(pending)
        if self.world.size > 1:
            flags = torch.tensor([float(stop), float(time_up)], device=rows.device)
            self.world.mean_([rows, flags])
            any_stop, any_time = flags.tolist()
            stop = stop or (signal.SIGTERM if any_stop else 0)
            time_up = bool(any_time)
        values = rows.double().cpu().numpy()
        if not np.isfinite(values).all():
            row = np.argwhere(~np.isfinite(values))[0, 0]
            terms = dict(zip(self.engine.term_names, values[row], strict=True))
            name = _culprit(terms)
            raise NonFinite(f"step {self.step - len(values) + row + 1}: {name} is {terms[name]}")
        return values, stop, bool(time_up)

    def _validate_and_keep_best(self, history: History | None, began: float) -> None:
        terms = self.validate()
        if not np.isfinite(list(terms.values())).all():
            name = _culprit(terms)
            raise NonFinite(f"step {self.step}: validation {name} is {terms[name]}")
        record = {"step": self.step, "split": "validation", **terms, "seconds": time.perf_counter() - began}
        self._write(history, record)
        best = terms["loss"] < self.best_loss
        self.log.info(f"step {self.step}  validation loss {terms['loss']:.6g}{'  (best)' if best else ''}")
        if best:
            self.best_loss = terms["loss"]
            self._save(self.folder / "checkpoints" / "best", began)

    def _save(self, path: Path, began: float) -> None:
        self.engine.check_parameters(self.step)
        self.seconds = time.perf_counter() - began
        if path == self._last:
            self._saved_step = self.step
        if not self.world.is_main:
            return
        content = self.engine.checkpoint()
        content.model_config = self._model_config
        content.scalars = {
            "step": self.step,
            "seconds": self.seconds,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else 1e300,
            "images_per_step": self.config.train.batch_size * self.world.size,
            "torch": torch.__version__,
        }
        checkpoints.save(path, content)

    def _write(self, history: History | None, record: dict[str, Any]) -> None:
        if history is not None:
            history.write(record)

    def _batches(self) -> HostBatches | DeviceBatches | FirstStageBatches:
        train = self.config.train
        order = BatchOrder(self.splits[0], train.batch_size, train.seed, self.world.rank, self.world.size)
        batches: HostBatches | DeviceBatches
        if self.device.type == "cuda" and self._fits_on_device():
            batches = DeviceBatches(self.dataset.to_device(self.device), order, self.step, self.device)
        else:
            batches = HostBatches(self.dataset, order, self.step, self.device, self.config.data.workers)
        model = self.engine.model
        if not hasattr(model, "stage1_images"):
            return batches
        self._cache = self._open_cache(model.stage1_key())
        return FirstStageBatches(batches, order, self.step, model.stage1_images, self._cache, self.log.info)

    def _open_cache(self, key: str) -> FirstStageCache | None:
        """The first-stage images of the run folder, one file for all processes; the main one makes it."""
        limit = int(self.config.data.first_stage_gb * 1e9)
        if not limit:
            return None
        cache = None
        for mine in (True, False):
            if mine == self.world.is_main:
                cache = open_cache(self.folder, key, self.dataset, self.splits[0], limit, mine, self.log.info)
            self.world.barrier()
        if cache is not None and self.world.is_main:
            size = f"{cache.capacity:,} of {len(self.splits[0]):,} images, at most {cache.max_bytes / 1e9:.2f} GB"
            self.log.info(f"first stage: kept in {cache.path} until the run is done ({size})", echo=False)
        return cache

    def _fits_on_device(self) -> bool:
        if self.config.data.on_device != "auto" or not hasattr(self.dataset, "to_device"):
            return self.config.data.on_device == "yes"
        free, _ = torch.cuda.mem_get_info(self.device)
        return len(self.dataset) * math.prod(self.dataset.image_shape) <= free / 3

    def _validation_indices(self) -> np.ndarray:
        indices = self.splits[1]
        count = self.config.train.eval_images
        if not count or count >= len(indices):
            return indices
        generator = np.random.Generator(np.random.Philox(key=[self.config.data.split_seed, 1]))
        return np.sort(generator.choice(indices, count, replace=False))

    def _check_images(self) -> None:
        model = self.config.model
        images = np.asarray(self.dataset.images(self.splits[0][:1]))
        channels = self.dataset.image_shape[2]
        if model.channels is None:
            model.channels = channels
        to_float(images, model.channels)
        if images.dtype != np.uint8:
            raise TypeError(f"data.spec: {self.dataset.name}: expected uint8 images, got {images.dtype}")
        if images.shape[1:3] != (model.image_size, model.image_size):
            size = f"{model.image_size}x{model.image_size}"
            raise ValueError(f"model.image_size: expected the data's {images.shape[1]}x{images.shape[2]}, got {size}")

    def _read_checkpoint(self) -> checkpoints.Checkpoint | None:
        """The last complete checkpoint of the folder; None if the run was killed before its first."""
        before, now = TrainConfig.load(self.folder / CONFIG), self.config
        fixed = [("model", f.name) for f in dataclasses.fields(now.model)]
        fixed += [("data", "spec"), ("data", "fractions"), ("data", "split_seed"), ("train", "seed")]
        fixed += [("train", "batch_size")]
        for section, name in fixed:
            old, new = (getattr(getattr(c, section), name) for c in (before, now))
            if old != new:
                raise ConfigError(f"{section}.{name}: cannot change on resume: the run has {old!r}, got {new!r}")
        if bool(before.optim.ema) != bool(now.optim.ema):
            raise ConfigError(f"optim.ema: cannot be turned on or off on resume: the run has {before.optim.ema}")
        checkpoints.recover_folder(self._last)
        if not self._last.exists():
            return None
        saved = checkpoints.load(self._last)
        for name in ("step", "seconds", "best_loss", "images_per_step"):
            if not isinstance(saved.scalars.get(name), (int, float)):
                raise checkpoints.CheckpointError(f"{self._last / 'state.json'}: field {name!r}: expected a number")
        images = now.train.batch_size * self.world.size
        if saved.scalars["images_per_step"] != images:
            expected = saved.scalars["images_per_step"]
            raise ConfigError(f"resume: expected {expected} images per step over all processes, got {images}")
        return saved

    def _say_hello(self) -> None:
        from .._version import __version__

        config, train = self.config, self.config.train
        count = sum(p.numel() for p in self.engine.model.parameters())
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()
        layout = "channels_last" if train.channels_last else "contiguous"
        sizes = " / ".join(f"{len(part):,}" for part in self.splits)
        extras = [name for name in ("compile", "cuda_graph") if getattr(train, name)]
        lines = [
            f"strucfast {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
            f"device: {self.device} ({where}), processes: {self.world.size}",
            f"threads: {self._threads}; {describe_allocator()}",
            f"layout: {layout}; precision: {train.precision}" + "".join(f"; {name}" for name in extras),
            f"data: {self.dataset.name}, {sizes} images to train / validate / test",
            f"model: {config.model.name}, {count:,} parameters, {config.model.image_size} px",
        ]
        for line in lines:
            self.log.info(line, echo=False)
        if self._warning:
            self.log.info(self._warning)
        verb = f"going on at step {self.step}" if self.step else "training"
        self.log.info(f"{verb}: {config.model.name} ({count:,} parameters) on {self.dataset.name} in {self.folder}")


class _Signals:
    """Ctrl-C and SIGTERM asked for, instead of acted on, while this is entered; a second Ctrl-C acts."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        # only the main thread may set handlers
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


def _split(dataset: Any, config: TrainConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from .. import data

    parts = data.split(dataset, config.data.fractions, config.data.split_seed)
    for part, name in zip(parts, ("training", "validation", "test"), strict=True):
        if len(part) == 0:
            raise ValueError(
                f"data.fractions: the {name} split of {dataset.name} ({len(dataset)} images) is empty with "
                f"{config.data.fractions}"
            )
    return parts


def _culprit(terms: dict[str, float]) -> str:
    """The name of a term that is not finite: the first part of the first broken loss, rather than that loss itself."""
    broken = [name for name, value in terms.items() if not math.isfinite(value)]
    optimizer = broken[0].rpartition(".")[0]
    whole = {f"{optimizer}.{name}".lstrip(".") for name in ("loss", "grad_norm")}
    parts = [name for name in broken if name.rpartition(".")[0] == optimizer and name not in whole]
    return (parts or broken)[0]


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _model_config(model: nn.Module) -> str:
    """Text of the config.json that models.load reads beside the weights; empty for a foreign model."""
    if not hasattr(model, "save_pretrained"):
        return ""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return (Path(folder) / checkpoints.MODEL_CONFIG).read_text()
