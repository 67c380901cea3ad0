"""The typed configuration of a training run: nested dataclasses, YAML in and out, presets.

Nothing here imports torch, so that the command line can show and check a configuration at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ._files import write_file


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file (if any) and the field."""


@dataclass
class ModelConfig:
    """Which model, and on which images."""

    # preset of strucfast.models.build
    name: str = "sae-12"
    # height and width of the images
    image_size: int = 64
    # colour channels; none: as the data has
    channels: int | None = None
    # further arguments of strucfast.models.build, as KEY=VALUE on the command line
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """Where the images come from and how they are split."""

    # shapes3d | dsprites | shapes3d:FILE.h5 | dsprites:FILE.npz | a folder of images | FILE.npy | FILE.npz | FILE.h5
    spec: str = "shapes3d"
    # parts of the training, validation and test split
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    # seed of the split
    split_seed: int = 0
    # threads that fetch the next batches; 0: in the training thread
    workers: int = 1
    # keep the whole data set on the GPU as uint8; auto: where it fits into a third of the free memory
    on_device: Literal["auto", "yes", "no"] = "auto"
    # GB of disk that a two-stage model's first-stage images may take in the run folder until the run is done; 0: none
    # are kept, each step computes its own
    first_stage_gb: float = 16.0


@dataclass
class OptimConfig:
    """Optimizer, learning-rate schedule, averaging of the weights."""

    # learning rate at its height
    learning_rate: float = 5e-4
    # decay rates of Adam's moments
    betas: tuple[float, float] = (0.9, 0.999)
    # decoupled from the loss where the optimizer does so
    weight_decay: float = 0.0
    # course of the learning rate after the warm-up
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    # steps over which the learning rate rises linearly from 0
    warmup_steps: int = 0
    # learning rate at the end, as a part of learning_rate
    final_fraction: float = 0.0
    # what drives the schedule: the steps, or (whichever is further on) the time used of train.max_minutes.
    # By time a run is not reproducible to the bit
    anneal_by: Literal["steps", "time"] = "steps"
    # largest norm of the gradient; 0: no clipping
    grad_clip: float = 0.0
    # decay of the moving average of the weights that validation, checkpoints and evaluation use; 0: off
    ema: float = 0.0


@dataclass
class LoopConfig:
    """The training loop and the machine it runs on."""

    # parameter updates
    steps: int = 100_000
    # images per update and process
    batch_size: int = 128
    # seed of the weights, the data order and the noise
    seed: int = 0
    # several runs in one command, one per seed, in sub-folders seed-N; empty: one run with train.seed
    seeds: tuple[int, ...] = ()
    # steps between two validations; 0: only at the end
    eval_every: int = 1000
    # images of the validation split used (a fixed random part); 0: all
    eval_images: int = 2048
    # steps between two checkpoints
    checkpoint_every: int = 1000
    # minutes after which a checkpoint is written even so; 0: never
    checkpoint_minutes: float = 5.0
    # bf16: autocast, parameters stay float32
    precision: Literal["float32", "bf16"] = "float32"
    # keep images and feature maps as NHWC in memory
    channels_last: bool = True
    # torch.compile the loss
    compile: bool = False
    # capture the whole step in a CUDA graph
    cuda_graph: bool = False
    # auto | cpu | cuda | cuda:N
    device: str = "auto"
    # CPU threads; 0: the physical cores this process may use
    threads: int = 0
    # stop after this many minutes; 0: no limit
    max_minutes: float = 0.0


@dataclass
class LogConfig:
    """What is written while training."""

    # steps between two lines of metrics.jsonl
    every: int = 50
    # bar on a terminal, lines elsewhere (auto)
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    # write TensorBoard event files
    tensorboard: bool = True


@dataclass
class TrainConfig:
    """Everything a training run depends on; saved as config.yaml in its folder."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict of lists, numbers, strings."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> TrainConfig:
        """Build and check a configuration; fields that are absent keep their defaults.

        Raises:
            ConfigError: unknown field, wrong type or value out of range; names ``source`` and the field.
        """
        config = _build(cls, values, source, "")
        config.check(source)
        return config

    def save(self, path: Path | str) -> None:
        """Write YAML, atomically."""
        write_file(Path(path), yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def load(cls, path: Path | str) -> TrainConfig:
        """Read YAML.

        Raises:
            ConfigError: the file is missing, is no YAML mapping, or holds a bad field; names the file and the field.
        """
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
        return cls.from_dict({} if values is None else values, str(path))

    def check(self, source: str = "config") -> None:
        """Check the ranges of all values.

        Raises:
            ConfigError: names ``source``, the field, what was expected and what came.
        """

        def need(condition: bool, name: str, expected: str) -> None:
            if not condition:
                section, leaf = name.split(".")
                got = getattr(getattr(self, section), leaf)
                raise ConfigError(f"{source}: {name}: expected {expected}, got {got!r}")

        model, data, optim, train, log = self.model, self.data, self.optim, self.train, self.log
        need(bool(model.name), "model.name", "the name of a model")
        need(model.image_size >= 4, "model.image_size", "at least 4")
        need(model.channels is None or model.channels >= 1, "model.channels", "at least 1, or none")
        need(bool(data.spec), "data.spec", "a data set")
        fractions_fit = all(f > 0 for f in data.fractions) and sum(data.fractions) <= 1 + 1e-9
        need(fractions_fit, "data.fractions", "three positive numbers that sum to at most 1")
        need(data.workers >= 0, "data.workers", "0 or more")
        need(data.first_stage_gb >= 0, "data.first_stage_gb", "0 or more")
        need(optim.learning_rate > 0 and math.isfinite(optim.learning_rate), "optim.learning_rate", "a positive number")
        need(all(0 <= b < 1 for b in optim.betas), "optim.betas", "two numbers in [0, 1)")
        need(optim.weight_decay >= 0, "optim.weight_decay", "0 or more")
        need(optim.warmup_steps >= 0, "optim.warmup_steps", "0 or more")
        need(0 <= optim.final_fraction <= 1, "optim.final_fraction", "a number in [0, 1]")
        need(optim.grad_clip >= 0, "optim.grad_clip", "0 or more")
        need(0 <= optim.ema < 1, "optim.ema", "a number in [0, 1)")
        by_time = optim.anneal_by == "time"
        need(not by_time or train.max_minutes > 0, "train.max_minutes", "a positive number with optim.anneal_by=time")
        need(train.steps >= 1, "train.steps", "at least 1")
        need(train.batch_size >= 1, "train.batch_size", "at least 1")
        need(train.seed >= 0, "train.seed", "0 or more")
        need(all(s >= 0 for s in train.seeds), "train.seeds", "seeds of 0 or more")
        need(len(set(train.seeds)) == len(train.seeds), "train.seeds", "seeds that differ")
        need(train.eval_every >= 0, "train.eval_every", "0 or more")
        need(train.eval_images >= 0, "train.eval_images", "0 or more")
        need(train.checkpoint_every >= 1, "train.checkpoint_every", "at least 1")
        need(train.checkpoint_minutes >= 0, "train.checkpoint_minutes", "0 or more")
        need(train.threads >= 0, "train.threads", "0 or more")
        need(train.max_minutes >= 0, "train.max_minutes", "0 or more")
        device = train.device.split(":")
        device_fits = device[0] in ("auto", "cpu", "cuda") and (len(device) == 1 or device[1].isdigit())
        need(device_fits, "train.device", "auto, cpu, cuda or cuda:N")
        need(log.every >= 1, "log.every", "at least 1")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _build(cls: type, values: Any, source: str, prefix: str) -> Any:
    """Dataclass ``cls`` from a mapping, checking names and types."""
    if not isinstance(values, dict):
        where = prefix.rstrip(".") or "the file"
        raise ConfigError(f"{source}: {where}: expected a mapping, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"{source}: unknown field {prefix}{name}{near(str(name), hints)}")
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = _build(hints[name], value, source, f"{prefix}{name}.")
        else:
            arguments[name] = _convert(hints[name], value, f"{source}: {prefix}{name}")
    return cls(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint``, or a ConfigError that starts with ``where``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wrong = ConfigError(f"{where}: expected {_describe(hint)}, got {value!r}")
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        raise wrong
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, where) for item in value)
        if len(value) != len(arguments):
            raise wrong
        return tuple(_convert(argument, item, where) for argument, item in zip(arguments, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise wrong
        return dict(value)
    if hint is float:
        # YAML 1.1 reads 5e-4 as a string
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise wrong
        try:
            return float(value)
        except ValueError:
            raise wrong from None
    if (isinstance(value, bool) and hint is not bool) or not isinstance(value, hint):
        raise wrong
    return value


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if a is type(None) else _describe(a) for a in arguments)
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {count}{_describe(arguments[0])}s"
    if origin is dict:
        return "a mapping with names as keys"
    return {float: "number", int: "integer", str: "string", bool: "true or false"}.get(hint, str(hint))


def near(name: str, known: typing.Iterable[str]) -> str:
    """A hint such as ``; did you mean 'sae-12'?`` for an unknown name, or what there is."""
    known = list(known)
    matches = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if matches:
        return f"; did you mean {' or '.join(repr(m) for m in matches)}?"
    return f"; there are {', '.join(known)}"


_ISA = ("isa-vae", "isa-vae-learnt", "isa-tcvae", "isa-tcvae-learnt")
# ISA-VAE paper, table 1: 20 epochs of 737,280 images
_ISA_SETTINGS = {
    "data.spec": "dsprites",
    "train.batch_size": 2048,
    "train.steps": 7200,
    "optim.learning_rate": 1e-3,
}

# what a preset changes of TrainConfig beside the model's name, as dotted fields, with the paper it is from
_SETTINGS: dict[str, dict[str, Any]] = {
    # MS-VAE paper's code; its first stage: --model.overrides stage1=RUN
    "ms-vae": {"train.batch_size": 32, "optim.learning_rate": 1e-4},
    **dict.fromkeys(_ISA, _ISA_SETTINGS),
    # the authors' published settings of the dSprites prior study: 20 epochs of 737,280 images
    "decomposition": {"data.spec": "dsprites", "train.batch_size": 64, "train.steps": 230_400},
}

# the models of strucfast.models.list(); spelt out so that a configuration needs no torch (a test compares)
_STRUCTURAL = tuple(f"{family}-{k}" for family in ("sae", "adaae", "vlae") for k in (2, 3, 4, 6, 12, 16))
_OBJECTIVES = (
    *("annealed-vae", "capacity-vae", "beta-tcvae", "factor-vae", "dip-vae-i", "dip-vae-ii"),
    *("wae-mmd", "info-vae", "hfvae", "hsic-vae"),
)
PAPER_MODELS = ("ae", "vae", "beta-vae", *_OBJECTIVES, "ms-vae", *_ISA, "decomposition", *_STRUCTURAL)


def presets() -> tuple[str, ...]:
    """Names that :func:`preset` knows."""
    return (*PAPER_MODELS, "demo")


def preset(name: str) -> TrainConfig:
    """The configuration called ``name``: "demo", or a model at the settings of the SAE paper (Leeb et al., A.2).

    64 px: batch 128, 100,000 steps. 128 px (sae-16): batch 32, 200,000 steps. Adam 5e-4, betas 0.9 and 0.999.
    Models of other papers differ from that where their paper does (``_SETTINGS``).
    ``sae-k``, ``adaae-k`` and ``vlae-k`` are known for every k.

    Raises:
        ConfigError: unknown name; says which come near.
    """
    if name == "demo":
        return _demo()
    if name not in PAPER_MODELS and not re.fullmatch(r"(sae|adaae|vlae)-[1-9]\d*", name):
        raise ConfigError(f"unknown preset {name!r}{near(name, presets())}")
    config = TrainConfig(model=ModelConfig(name=name))
    for path, value in _SETTINGS.get(name, {}).items():
        section, leaf = path.split(".")
        setattr(getattr(config, section), leaf, value)
    if name.endswith("-16"):
        config.model.image_size = 128
        config.train.batch_size = 32
        config.train.steps = 200_000
    return config


def _demo() -> TrainConfig:
    """A small SAE that learns procedural Shapes3D at 32x32 in about three minutes on two cores."""
    # Measured on 2 AVX-512 cores with AMX, bf16, held-out PSNR: 8,500 steps 36.1 dB (18 ms a step when nothing else
    # runs); with a busy neighbour, on one thread, 4,660 steps in 168 s, 32.8 dB. At 1,500 steps: width 16 24.0, width
    # 32 26.1 (float32, rate 2e-3), 27.1 (bf16, rate 5e-3).
    from .machine import has_bf16_units

    optim = OptimConfig(learning_rate=5e-3, schedule="cosine", warmup_steps=200, ema=0.99, anneal_by="time")
    # the time ends the schedule on a slow machine, the steps on a fast one
    train = LoopConfig(steps=12_000, batch_size=32, eval_every=1000, eval_images=512, max_minutes=2.8)
    train.precision = "bf16" if has_bf16_units() else "float32"
    return TrainConfig(
        model=ModelConfig(name="sae-6", image_size=32, overrides={"width": 32, "blocks": 6}),
        data=DataConfig(spec="shapes3d"),
        optim=optim,
        train=train,
    )
