"""report.html of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .evaluation import Evaluation, evaluate_run, metrics_of, stored_codes
from .run import Run


def write_run_report(
    run: Run, path: Path | str | None = None, which: str = "best", seed: int = 0, evaluation: Evaluation | None = None
) -> Path:
    """Write the report of ``run``; evaluates it first unless it has been since that checkpoint was written.

    Args:
        path: default RUN/report.html.
        evaluation: figures that are at hand already.

    Raises:
        CheckpointError: the run has no (whole) checkpoint. OSError: ``path`` cannot be written.
    """
    from .. import plots

    metrics, seconds = _figures(run, which) if evaluation is None else (evaluation.metrics, evaluation.seconds)
    figures = run.evaluation() if evaluation is None else {"psnr": evaluation.psnr, "images": len(evaluation.codes)}
    model = run.load_model(which)
    scalars = run.scalars(which)
    began = time.perf_counter()
    codes = stored_codes(run, model, 1024, seed)
    timings = {"training": run.scalars("last")["seconds"], **seconds, "stored codes": time.perf_counter() - began}
    return plots.write_report(
        path or run.path / "report.html",
        title=f"{run.config.model.name} on {run.dataset().name}, step {scalars['step']:,}",
        model=model,
        dataset=run.dataset(),
        test_indices=run.splits()[2],
        history=run.history(),
        config=run.config.to_dict(),
        metrics=metrics,
        codes=codes,
        timings=timings,
        seed=seed,
        psnr=(figures["psnr"], figures["images"]),
    )


def _figures(run: Run, which: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Metric results and timings: from codes.h5 if it belongs to this checkpoint, else from a new evaluation."""
    from .. import metrics

    found = run.evaluation()
    same = found is not None and (found["checkpoint"], found["step"]) == (which, run.scalars(which)["step"])
    if not same or not (run.path / "codes.h5").exists():
        evaluation = evaluate_run(run, which)
        return evaluation.metrics, evaluation.seconds
    if not found["metrics"]:
        return {}, found["seconds"]
    stored = metrics.load_codes(run.path / "codes.h5")
    names = tuple(found["metrics"])
    results = metrics_of(stored.codes, stored.factors, names, stored.factor_names or (), logvar=stored.logvar)
    return results, found["seconds"]
