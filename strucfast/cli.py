"""The command line: ``strucfast demo | train | evaluate | sample | traverse | report | data | bench | info``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .training.config import ConfigError, TrainConfig, near, preset, presets

if TYPE_CHECKING:

    from .training import Run

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 an error (said in one line), 130 or 143 stopped by a signal.

    Args:
        argv: arguments after the program's name; default those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else USAGE_ERROR
    if arguments[0] == "--version":
        from ._version import __version__

        print(f"strucfast {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _fail("strucfast", f"unknown command {name!r}{near(name, COMMANDS)}")
    if argv is None and COMMANDS[name].heavy and not {"-h", "--help"} & set(rest):
        from .training.machine import restart_with_allocator

        restart_with_allocator()
    try:
        return COMMANDS[name].run(rest) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader (head, less) has seen enough; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        expected = isinstance(error, (ValueError, TypeError, OSError, FloatingPointError))
        kind = "" if expected else f"{type(error).__name__}: "
        return _fail(f"strucfast {name}", f"{kind}{error}", hint=not debug and not expected)
    finally:
        _leave_processes()


def _fail(program: str, message: str, hint: bool = False) -> int:
    line = " ".join(message.split())
    print(f"{program}: error: {line}{' (--debug shows where)' if hint else ''}", file=sys.stderr)
    return USAGE_ERROR


def _leave_processes() -> None:
    # only if this command joined others; importing torch here would slow `strucfast --help`
    if "torch.distributed" in sys.modules and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from .training.distributed import leave

        leave()


def _usage() -> str:
    lines = ["usage: strucfast COMMAND [OPTIONS]", ""]
    lines += [f"  {name:9} {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "strucfast COMMAND --help says more; --debug shows where an error came from.", ""]
    lines += [f"presets to train: {', '.join(presets())}"]
    return "\n".join(lines)


# train


@dataclass
class TrainOptions:
    """Train a model: PRESET, a config.yaml, or (with --resume) a run folder. Each field of the config is an option."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    # run folder; default: runs/PRESET
    out: Path | None = None
    # go on with the run in the folder, bit for bit
    resume: bool = False
    # replace the run in the folder
    overwrite: bool = False


def _train(arguments: list[str]) -> int:
    target, rest = _take_positional(arguments)
    asks_help = bool({"-h", "--help"} & set(rest))
    if target is None and not asks_help:
        given = ", ".join(presets())
        raise ConfigError(f"expected a preset, a config.yaml, or a run folder with --resume; presets: {given}")
    folder, config = _start_from(target, rest) if target is not None else (None, TrainConfig())
    options = _parse(TrainOptions, rest, f"strucfast train {target or 'PRESET'}", TrainOptions(config))
    config = options.config
    config.check("command line")
    from .training import Trainer, train_seeds
    from .training.seeds import summary_table

    if config.train.seeds:
        result = train_seeds(config, folder, resume=options.resume, overwrite=options.overwrite)
        if isinstance(result, int):
            return 128 + result
        print(summary_table(result))
        print(f"run folder: {folder}")
        return 0
    trainer = Trainer(config, folder, resume=options.resume, overwrite=options.overwrite)
    run: Run = trainer.fit()
    if trainer.interrupted:
        return 128 + trainer.interrupted
    if trainer.world.is_main:
        print(f"run folder: {run.path}\nlook at it: strucfast report {run.path}")
    return 0


def _take_positional(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The first argument, if it is no option, or the one that follows --resume; and the others."""
    for place, argument in enumerate(arguments):
        if not argument.startswith("-") and (place == 0 or arguments[place - 1] in ("--resume", "--overwrite")):
            return argument, arguments[:place] + arguments[place + 1 :]
    return None, arguments


def _start_from(target: str, rest: list[str]) -> tuple[Path, TrainConfig]:
    """The run folder, and the configuration that options change."""
    from .training.folder import CONFIG

    out = _option(rest, "--out")
    path = Path(target)
    if (path / CONFIG).is_file():
        if "--resume" not in rest:
            raise ConfigError(f"{path} is a run; go on with it: strucfast train {path} --resume")
        return path, TrainConfig.load(path / CONFIG)
    if path.suffix in (".yaml", ".yml"):
        fresh = TrainConfig.load(path)
        folder = Path(out or Path("runs") / path.stem)
    elif os.sep in target:
        raise ConfigError(f"{path}: expected a preset, a .yaml file, or a run folder (with {CONFIG} in it)")
    else:
        fresh = preset(target)
        folder = Path(out or Path("runs") / target)
    if "--resume" not in rest or not (folder / CONFIG).is_file():
        return folder, fresh
    saved = TrainConfig.load(folder / CONFIG)
    if saved.model.name != fresh.model.name:
        raise ConfigError(f"--resume: {folder} holds a run of {saved.model.name}, not of {fresh.model.name}")
    return folder, saved


def _option(arguments: list[str], name: str) -> str | None:
    for place, argument in enumerate(arguments):
        if argument == name and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}=")
    return None


def _parse(kind: Any, arguments: list[str], program: str, default: Any = None) -> Any:
    """tyro with our rule for ``--model.overrides KEY=VALUE``, which add to those of the preset."""
    import yaml

    base = dict(default.config.model.overrides) if isinstance(default, TrainOptions) else {}
    registry = tyro.constructors.ConstructorRegistry()

    def read(items: list[str]) -> dict[str, Any]:
        values = dict(base)
        for item in items:
            key, equals, value = item.partition("=")
            if not key or not equals:
                raise ValueError(f"expected KEY=VALUE, got {item!r}")
            values[key.replace("-", "_")] = yaml.safe_load(value)
        return values

    @registry.primitive_rule
    def key_values(info: Any) -> Any:
        if info.type != dict[str, Any]:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="KEY=VALUE",
            instance_from_str=read,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda values: [f"{key}={value}" for key, value in values.items()],
        )

    extra = {} if default is None else {"default": default}
    return tyro.cli(kind, args=arguments, prog=program, registry=registry, **extra)


# what looks at a run

Positional = tyro.conf.Positional


def _command(function: Callable[..., int | None], name: str) -> Callable[[list[str]], int | None]:
    return lambda arguments: _parse(function, arguments, f"strucfast {name}")


def _evaluate(
    target: Positional[Path],
    which: Literal["best", "last"] = "best",
    metrics: tuple[str, ...] = (),
    num_images: int = 15_000,
    seed: int = 0,
    tables: bool = False,
    out: Path | None = None,
) -> None:
    """Held-out PSNR and metrics of a run; writes codes.h5 and evaluation.json into it. Or metrics of a file of codes.

    Args:
        target: a run folder, or codes.h5 / codes.npz with codes and factors.
        which: checkpoint: best by validation loss, or last.
        metrics: which metrics, or all; default the usual ones.
        num_images: test images, or rows of the file, at most; two thirds of them to fit on.
        seed: which of the test images or rows, and what is random in the metrics.
        tables: print every metric's matrix; default where there are at most three metrics.
        out: also write the results of a file of codes as JSON.
    """
    from .training.evaluation import evaluate_run, metrics_of, results_table

    _need_positive(num_images=num_images)
    names = metrics if metrics else None
    full = True if tables else None
    if target.suffix in (".h5", ".hdf5", ".npz"):
        from . import metrics as metrics_module

        stored = metrics_module.load_codes(target)
        if stored.factors is None:
            raise ValueError(f"{target}: field 'factors' is missing: metrics need the factors of each code")
        train = -(-num_images * 2 // 3)
        results = metrics_of(
            stored.codes,
            stored.factors,
            names,
            stored.factor_names or (),
            code_names=stored.code_names,
            logvar=stored.logvar,
            seed=seed,
            num_train=train,
            num_test=num_images - train,
            progress=sys.stderr.isatty(),
        )
        print(results_table(results, full))
        if out is not None:
            print(f"\nwritten: {results.save(out)}")
        return
    if out is not None:
        raise ValueError("--out: is for a file of codes; a run's results go into its folder")
    run = _run(target)
    print(evaluate_run(run, which, names, num_images, seed, sys.stderr.isatty()).table(full))
    print(f"\nwritten: {run.path / 'evaluation.json'}, {run.path / 'codes.h5'}")


def _sample(
    run: Positional[Path],
    num: int = 64,
    sampler: Literal["hybrid", "prior"] = "hybrid",
    groups: tuple[int, ...] | None = None,
    stored: int = 128,
    out: Path | None = None,
    which: Literal["best", "last"] = "best",
    seed: int = 0,
) -> None:
    """New images from a run's model, as a PNG grid.

    Args:
        run: a run folder.
        num: images.
        sampler: hybrid: each latent variable from the stored codes by itself; prior: from the model's prior (VAEs).
        groups: numbers of the latent groups to hybridise; the others stay together as in one stored code.
        stored: training images whose codes are stored for hybrid sampling.
        out: the PNG; default RUN/samples.png.
        which: checkpoint: best by validation loss, or last.
        seed: of the sampling.
    """
    import torch

    from . import plots, samplers
    from .training.evaluation import stored_codes

    run = _run(run)
    _need_positive(num=num, stored=stored)
    model = run.load_model(which)
    generator = torch.Generator().manual_seed(seed)
    if sampler == "prior":
        codes = samplers.PriorSampler(model).sample(num, generator)
    else:
        kept = stored_codes(run, model, stored, seed)
        codes = samplers.HybridSampler(kept, model.latent_groups).sample(num, generator, groups)
    with torch.no_grad():
        images = torch.cat([model.decode(part) for part in codes.split(256)])
    target = plots.save_png(out or run.path / "samples.png", plots.image_grid(images))
    print(f"written: {target}")


def _traverse(
    run: Positional[Path],
    steps: int = 9,
    stored: int = 1024,
    out: Path | None = None,
    which: Literal["best", "last"] = "best",
    seed: int = 0,
) -> None:
    """What each latent variable does: one row per variable, from its least to its greatest stored value, as a PNG.

    Args:
        run: a run folder.
        steps: images per row.
        stored: training images whose codes give the ranges.
        out: the PNG; default RUN/traversals.png.
        which: checkpoint: best by validation loss, or last.
        seed: which training images.
    """
    import io

    from . import plots
    from .training._files import write_file
    from .training.evaluation import stored_codes

    run = _run(run)
    _need_positive(steps=steps, stored=stored)
    model = run.load_model(which)
    figure = plots.traversals(model, stored_codes(run, model, stored, seed), steps=steps)
    target = out or run.path / "traversals.png"
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_file(target, picture.getvalue())
    print(f"written: {target}")


def _report(
    run: Positional[Path], out: Path | None = None, which: Literal["best", "last"] = "best", seed: int = 0
) -> None:
    """One self-contained report.html: curves, reconstructions, samples, traversals, scores. Evaluates first if needed.

    Args:
        run: a run folder.
        out: the page; default RUN/report.html.
        which: checkpoint: best by validation loss, or last.
        seed: of the choice of images.
    """
    from .training.report import write_run_report

    print(f"written: {write_run_report(_run(run), out, which, seed)}")


def _run(path: Path) -> Run:
    from .training import Run

    return Run(path)


def _need_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"--{name}: expected at least 1, got {value}")


# data, info, demo


def _data_info(spec: Positional[str] = "shapes3d", image_size: int = 64) -> None:
    """Name, size and factors of a data set.

    Args:
        spec: shapes3d | dsprites | shapes3d:FILE.h5 | dsprites:FILE.npz | a folder of images | FILE.npy | .npz | .h5
        image_size: height and width.
    """
    from . import data

    dataset = data.build(spec, image_size=image_size)
    shape = " x ".join(map(str, dataset.image_shape))
    print(f"name     {dataset.name}\nimages   {len(dataset):,}\nshape    {shape} uint8")
    for name, size in zip(dataset.factor_names, dataset.factor_sizes, strict=True):
        print(f"factor   {name} ({size})")
    if not dataset.factor_names:
        print("factors  unknown")


def _data_preview(
    spec: Positional[str] = "shapes3d",
    out: Path = Path("preview.png"),
    num: int = 64,
    image_size: int = 64,
    seed: int = 0,
) -> None:
    """Random images of a data set as a PNG grid.

    Args:
        spec: shapes3d | dsprites | shapes3d:FILE.h5 | dsprites:FILE.npz | a folder of images | FILE.npy | .npz | .h5
        out: the PNG.
        num: images.
        image_size: height and width.
        seed: which images.
    """
    import numpy as np

    from . import data, plots

    _need_positive(num=num)
    dataset = data.build(spec, image_size=image_size)
    indices = np.random.default_rng(seed).integers(len(dataset), size=num)
    print(f"written: {plots.save_png(out, plots.image_grid(np.asarray(dataset.images(indices))))}")


def _data(arguments: list[str]) -> None:
    parts = {"info": _data_info, "preview": _data_preview}
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: strucfast data {info,preview} SPEC [OPTIONS]")
        for name, function in parts.items():
            print(f"  {name:9} {function.__doc__.splitlines()[0]}")
        return
    name, *rest = arguments
    if name not in parts:
        raise ConfigError(f"unknown command 'data {name}'{near(name, parts)}")
    _parse(parts[name], rest, f"strucfast data {name}")


def _bench_compare(before: Positional[Path], after: Positional[Path], threshold: float = 0.05) -> int:
    """Regressions between two files of benchmark results, by our ratios over eager; exit code 1 if there are any.

    Args:
        before: results, JSON as in benchmarks/results.
        after: results to judge.
        threshold: least share of the ratio that counts.
    """
    from ._bench_compare import compare

    comparison = compare(before, after, threshold)
    print(comparison)
    return 1 if comparison.regressions else 0


def _bench(arguments: list[str]) -> int | None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: strucfast bench compare BEFORE.json AFTER.json [--threshold SHARE]")
        return None
    name, *rest = arguments
    if name != "compare":
        raise ConfigError(f"unknown command 'bench {name}'{near(name, ('compare',))}")
    return _parse(_bench_compare, rest, "strucfast bench compare")


def _info() -> None:
    """Versions, what is loaded, and why the rest is not."""
    from ._config import show_config

    show_config()


def _demo(out: Path = Path("runs/demo"), fast: bool = False) -> int:
    """Train a small structural autoencoder on procedural Shapes3D in about three minutes, and show what it learnt.

    Args:
        out: run folder; a demo's run that is there is replaced.
        fast: a few seconds, to see that everything works.
    """
    from .training.demo import demo

    return demo(out, fast)


@dataclass(frozen=True)
class Command:
    """One word of the command line. heavy: worth starting again with a faster allocator."""

    run: Callable[[list[str]], int | None]
    help: str
    heavy: bool = False


COMMANDS = {
    "demo": Command(_command(_demo, "demo"), "train a small model in three minutes and write a report", heavy=True),
    "train": Command(_train, "train PRESET, or go on with a run (RUN --resume)", heavy=True),
    "evaluate": Command(_command(_evaluate, "evaluate"), "held-out PSNR and metrics of RUN or of codes.h5", heavy=True),
    "sample": Command(_command(_sample, "sample"), "new images from the model of RUN", heavy=True),
    "traverse": Command(_command(_traverse, "traverse"), "what each latent variable of RUN does", heavy=True),
    "report": Command(_command(_report, "report"), "write RUN/report.html", heavy=True),
    "data": Command(_data, "data info SPEC, data preview SPEC"),
    "bench": Command(_bench, "bench compare BEFORE.json AFTER.json: regressions between two files of results"),
    "info": Command(_command(_info, "info"), "versions, what is loaded, and why the rest is not"),
}
