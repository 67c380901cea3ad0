"""Held-out figures of a trained model: codes, PSNR, metrics."""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ._files import write_file
from .batches import to_float
from .config import near
from .machine import resolve_device
from .run import Run

if TYPE_CHECKING:
    from .. import metrics

# So many metrics still print their matrices.
_FEW = 3


@dataclass
class Evaluation:
    """Figures over held-out images.

    Attributes:
        psnr: mean over images of 10 log10(1 / MSE), in dB.
        metrics: result by name; empty where the data has no known factors.
        codes: (N, D) float32, posterior means. factors: (N, K) int64, None where unknown. indices: (N,) int64.
        seconds: time by part.
        logvar: (N, D) float32, log-variances of the posteriors; None for an encoder without variance.
    """

    psnr: float
    metrics: dict[str, Any]
    codes: np.ndarray
    factors: np.ndarray | None
    indices: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    logvar: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures, without the arrays of codes."""
        metrics = {name: result.to_dict() for name, result in self.metrics.items()}
        return {"images": len(self.codes), "psnr": self.psnr, "metrics": metrics, "seconds": self.seconds}

    def table(self, full: bool | None = None) -> str:
        """The figures as text; ``full`` adds the matrix of every metric, by default where there are few metrics."""
        lines = [f"held-out images  {len(self.codes):,}", f"PSNR             {self.psnr:.2f} dB"]
        if not self.metrics:
            return "\n".join([*lines, "metrics          none: the data has no known factors"])
        return "\n".join([*lines, "", results_table(self.metrics, full)])


def results_table(results: metrics.Results, full: bool | None = None) -> str:
    """Scores as text; ``full`` adds the matrix of every metric, by default where there are few metrics."""
    return str(results) if full or (full is None and len(results) <= _FEW) else results.summary()


def encode(model: nn.Module, dataset: Any, indices: np.ndarray, batch_size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Codes and reconstruction errors of images.

    Args:
        model: a strucfast.models.Autoencoder on any device.
        indices: (N,) which images of ``dataset``.

    Returns:
        codes (N, D) float32 (posterior means) and the mean squared error (N,) of each image's reconstruction.
    """
    codes, _, errors = _encode(model, dataset, indices, batch_size)
    return codes, errors


@torch.no_grad()
def _encode(
    model: nn.Module, dataset: Any, indices: np.ndarray, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Means, log-variances (None where a posterior is a point) and reconstruction errors of images."""
    if len(indices) == 0:
        raise ValueError("indices: expected at least one image, got none")
    device = next(model.parameters()).device
    codes, variances, errors = [], [], []
    for start in range(0, len(indices), batch_size):
        x = to_float(dataset.images(indices[start : start + batch_size])).to(device)
        posterior = model.encode(x)
        z = posterior.mean
        codes.append(z.float().cpu())
        variances.append(posterior.variance.float().cpu())
        errors.append((model.decode(z) - x).square().double().mean(dim=(1, 2, 3)).cpu())
    variance = torch.cat(variances)
    logvar = variance.log().numpy() if bool((variance > 0).all()) else None
    return torch.cat(codes).numpy(), logvar, torch.cat(errors).numpy()


def psnr(errors: np.ndarray) -> float:
    """Mean over images of 10 log10(1 / MSE) in dB, for values in [0, 1]; an exact image counts as 100 dB."""
    return float(np.mean(-10 * np.log10(np.maximum(errors, 1e-10))))


def evaluate_run(
    run: Run,
    which: str = "best",
    metrics: str | tuple[str, ...] | None = None,
    num_images: int = 15_000,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Encode (up to ``num_images`` of) the test split; write codes.h5 and evaluation.json into the run folder.

    Args:
        metrics: names; None for the default ones, "all" for all that can be computed, () for none.
        progress: show a bar.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged. ValueError: unknown metric.
    """
    # before the long part
    _check_metrics(metrics)
    model = run.load_model(which).to(resolve_device("auto"))
    dataset = run.dataset()
    indices = run.splits()[2]
    if len(indices) > num_images:
        generator = np.random.Generator(np.random.Philox(key=[seed, 2]))
        indices = np.sort(generator.choice(indices, num_images, replace=False))
    began = time.perf_counter()
    codes, logvar, errors = _encode(model, dataset, indices)
    seconds = {"encoding": time.perf_counter() - began}
    named = bool(dataset.factor_names)
    factors = np.asarray(dataset.factors(indices)) if named else None
    results: dict[str, Any] = {}
    if factors is not None and metrics != ():
        options = {"logvar": logvar, "seed": seed, "progress": progress}
        results = metrics_of(codes, factors, metrics, dataset.factor_names, **options)
        seconds |= results.seconds
    evaluation = Evaluation(psnr(errors), results, codes, factors, indices, seconds, logvar)
    _save_codes(run.path / "codes.h5", evaluation, dataset)
    header = {"checkpoint": which, "step": run.scalars(which)["step"], "data": dataset.name}
    write_file(run.path / "evaluation.json", json.dumps(header | evaluation.to_dict(), indent=1))
    return evaluation


def metrics_of(
    codes: np.ndarray,
    factors: np.ndarray,
    names: str | tuple[str, ...] | None = None,
    factor_names: tuple[str, ...] = (),
    **options: Any,
) -> metrics.Results:
    """Results of the named metrics of codes (N, D) and factors (N, K); options of ``metrics.evaluate_codes``.

    Raises:
        ValueError: unknown metric, and what the metrics raise.
    """
    from .. import metrics

    _check_metrics(names)
    return metrics.evaluate_codes(codes, factors, names, factor_names=factor_names or None, **options)


def _check_metrics(names: str | tuple[str, ...] | None) -> None:
    from .. import metrics

    known = (*metrics.names(), "all")
    for name in (names,) if isinstance(names, str) else names or ():
        if name not in known:
            raise ValueError(f"unknown metric {name!r}{near(name, known)}")


def mean_and_deviation(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (0 for one value) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "values": values}


@torch.no_grad()
def stored_codes(run: Run, model: nn.Module, count: int = 128, seed: int = 0) -> Tensor:
    """Codes (count, D) of training images, as hybrid sampling stores them (SAE paper, section 2.2: 128)."""
    indices = run.splits()[0]
    if len(indices) > count:
        generator = np.random.Generator(np.random.Philox(key=[seed, 3]))
        indices = np.sort(generator.choice(indices, count, replace=False))
    return torch.from_numpy(encode(model, run.dataset(), indices)[0])


def _save_codes(path: Path, evaluation: Evaluation, dataset: Any) -> None:
    from .. import metrics

    metrics.save_codes(
        path,
        evaluation.codes,
        evaluation.factors,
        indices=evaluation.indices,
        factor_names=dataset.factor_names if evaluation.factors is not None else None,
        code_names=[f"z{i}" for i in range(evaluation.codes.shape[1])],
        logvar=evaluation.logvar,
    )
