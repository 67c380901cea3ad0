"""``strucfast demo``: from nothing to a report in about three minutes."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from .config import preset
from .evaluation import evaluate_run
from .log import duration
from .report import write_run_report
from .trainer import Trainer


def demo(out: Path | str = "runs/demo", fast: bool = False) -> int:
    """Train the preset "demo" into ``out``, evaluate it, write its report, print a table.

    Args:
        fast: about ten seconds of training, to see that everything works.

    Returns:
        The exit code: 0, or 128 + the signal that stopped it.
    """
    began = time.perf_counter()
    config = preset("demo")
    if fast:
        config.train.max_minutes = 10 / 60
        config.train.eval_every, config.train.eval_images = 0, 256
    trainer = Trainer(config, out, overwrite=True)
    run = trainer.fit()
    if trainer.interrupted:
        return 128 + trainer.interrupted
    evaluation = evaluate_run(run, num_images=2000 if fast else 10_000)
    page = write_run_report(run, evaluation=evaluation)
    rates = [record["images_per_s"] for record in run.history() if record["split"] == "train"]
    mig = evaluation.metrics["mig"]
    rows = [
        ("model", f"{config.model.name}, {config.model.image_size} px, {len(evaluation.codes[0])} latent variables"),
        ("steps", f"{trainer.step:,} of batch {config.train.batch_size}"),
        ("PSNR held-out", f"{evaluation.psnr:.2f} dB over {len(evaluation.codes):,} images"),
        ("MIG", f"{mig.score:.3f}"),
        ("images/s", f"{statistics.median(rates):,.0f} (median while training)"),
        ("training", duration(trainer.seconds)),
        ("everything", duration(time.perf_counter() - began)),
    ]
    print(f"\n{mig}\n")
    print("\n".join(f"{name:14} {value}" for name, value in rows))
    print(f"\nreport: {page.resolve()}")
    return 0
