"""Several metrics from one encoding pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ._inputs import check_codes
from ._result import Result
from .mig import mig


class Dataset(Protocol):
    """What :func:`evaluate` needs of a data set (``strucfast.data`` has it)."""

    factor_names: tuple[str, ...]

    def __len__(self) -> int: ...
    def images(self, indices: np.ndarray) -> np.ndarray: ...
    def factors(self, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Encoded:
    """What a metric may use: the codes and factors of the sampled rows, and a generator of its own."""

    codes: np.ndarray
    factors: np.ndarray
    factor_names: tuple[str, ...]
    rng: np.random.Generator


# name -> function of an Encoded. A metric joins `evaluate` by one entry.
_METRICS: dict[str, Callable[[Encoded], Result]] = {}


def register(name: str) -> Callable[[Callable[[Encoded], Result]], Callable[[Encoded], Result]]:
    """Make a function of an :class:`Encoded` available to :func:`evaluate` under ``name``."""

    def add(function: Callable[[Encoded], Result]) -> Callable[[Encoded], Result]:
        if name in _METRICS:
            raise ValueError(f"metrics: {name!r} is registered already")
        _METRICS[name] = function
        return function

    return add


@register("mig")
def _mig(data: Encoded) -> Result:
    return mig(data.codes, data.factors, factor_names=data.factor_names)


def names() -> tuple[str, ...]:
    """The metrics that :func:`evaluate` knows."""
    return tuple(_METRICS)


def _encode(encode: Callable[[np.ndarray], Any], dataset: Dataset, rows: np.ndarray, batch_size: int) -> np.ndarray:
    parts = []
    for begin in range(0, len(rows), batch_size):
        batch = rows[begin : begin + batch_size]
        codes = check_codes(encode(dataset.images(batch)), "encode(images)")
        if len(codes) != len(batch):
            raise ValueError(f"encode: expected codes ({len(batch)}, D) for {len(batch)} images, got {codes.shape}")
        parts.append(codes)
    return np.concatenate(parts)


def evaluate(
    encode: Callable[[np.ndarray], Any],
    dataset: Dataset,
    metrics: Sequence[str] = ("mig",),
    *,
    seed: int = 0,
    num_samples: int = 10000,
    batch_size: int = 256,
    indices: Any = None,
) -> dict[str, Result]:
    """Compute several metrics from codes that are encoded once.

    Args:
        encode: uint8 images (B, H, W, C) -> codes (B, D), numpy or torch; posterior means as a rule.
        dataset: images and factors by row number, as in ``strucfast.data``.
        metrics: names, see :func:`names`.
        seed: of the sampled rows and of everything random in the metrics.
        num_samples: rows to encode; all rows where there are fewer.
        batch_size: images a call of ``encode``.
        indices: rows to sample from (a test split); all rows by default.

    Returns:
        name -> result, in the order asked for. The same seed gives the same rows and results.

    Raises:
        ValueError: an unknown metric, a data set without factors, codes of the wrong shape or not finite.
    """
    if isinstance(metrics, str):
        metrics = (metrics,)
    unknown = [name for name in metrics if name not in _METRICS]
    if unknown:
        raise ValueError(f"metrics: expected names out of {sorted(_METRICS)}, got {unknown}")
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    if not dataset.factor_names:
        raise ValueError(
            "dataset: expected known factors of variation, got none; these metrics compare codes with factors"
        )
    pool = np.arange(len(dataset)) if indices is None else np.asarray(indices)
    if len(pool) == 0:
        raise ValueError("indices: expected at least one row, got none")
    sampling, *streams = np.random.default_rng(seed).spawn(1 + len(metrics))
    rows = np.sort(sampling.choice(pool, min(num_samples, len(pool)), replace=False))
    codes = _encode(encode, dataset, rows, batch_size)
    factors = dataset.factors(rows)
    return {
        name: _METRICS[name](Encoded(codes, factors, tuple(dataset.factor_names), rng))
        for name, rng in zip(metrics, streams)
    }
