"""Several seeds in one command, and their mean and deviation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ._files import write_file
from .config import ConfigError, TrainConfig
from .evaluation import evaluate_run, mean_and_deviation
from .folder import CONFIG, claim
from .trainer import Trainer


def train_seeds(
    config: TrainConfig, run_dir: Path | str, *, resume: bool = False, overwrite: bool = False, num_images: int = 10_000
) -> dict[str, Any] | int:
    """Train and evaluate one run per seed of ``config.train.seeds`` in ``run_dir``/seed-N; write summary.json.

    Args:
        resume: go on where the command was stopped; finished runs are kept.
        overwrite: replace what is in ``run_dir``.
        num_images: test images each run is evaluated on, at most.

    Returns:
        The summary: "seeds", and "figures" with mean, standard deviation and values of each figure; or the number of
        the signal that stopped the command.
    """
    if not config.train.seeds:
        raise ConfigError("train.seeds: expected at least one seed")
    folder = Path(run_dir)
    lock = claim(folder, resume, overwrite)
    try:
        return _train_all(config, folder, resume, num_images)
    finally:
        lock.release()


def _train_all(config: TrainConfig, folder: Path, resume: bool, num_images: int) -> dict[str, Any] | int:
    config.save(folder / CONFIG)
    figures: dict[str, list[float]] = {}
    for seed in config.train.seeds:
        single = TrainConfig.from_dict(config.to_dict())
        single.train.seed, single.train.seeds = seed, ()
        path = folder / f"seed-{seed}"
        trainer = Trainer(single, path, resume=resume and (path / CONFIG).exists())
        run = trainer.fit()
        if trainer.interrupted:
            return trainer.interrupted
        last = run.scalars("last")
        found = run.evaluation() if resume else None
        if found is None or found["step"] != run.scalars("best")["step"]:
            found = evaluate_run(run, num_images=num_images).to_dict()
        values = {"validation_loss": last["best_loss"], "psnr": found["psnr"], "seconds": last["seconds"]}
        # a score that is not defined, or infinite, has no mean
        scores = {name: result["score"] for name, result in found["metrics"].items()}
        values |= {name: score for name, score in scores.items() if score is not None}
        for name, value in values.items():
            figures.setdefault(name, []).append(value)
    summary = {
        "seeds": list(config.train.seeds),
        "figures": {name: mean_and_deviation(values) for name, values in figures.items()},
    }
    write_file(folder / "summary.json", json.dumps(summary, indent=1))
    return summary


def summary_table(summary: dict[str, Any]) -> str:
    """A summary of :func:`train_seeds` as text."""
    seeds = ", ".join(str(seed) for seed in summary["seeds"])
    width = max(16, 2 + max(map(len, summary["figures"])))
    lines = [f"{len(summary['seeds'])} seeds ({seeds})", f"{'':{width}}{'mean':>12}{'deviation':>12}"]
    lines += [f"{name:{width}}{f['mean']:12.5g}{f['std']:12.3g}" for name, f in summary["figures"].items()]
    return "\n".join(lines)
