"""Several metrics from one encoding pass."""

from __future__ import annotations

import json
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ._codes import check_logvar
from ._histogram import column_range
from ._inputs import check_codes, check_factors, check_names
from ._result import Result, table

# stage ("encode" or a metric's name), how much of it is done, how much there is
Progress = Callable[[str, int, int], None]


class Dataset(Protocol):
    """What :func:`evaluate` needs of a data set (``strucfast.data`` has it)."""

    factor_names: tuple[str, ...]

    def __len__(self) -> int: ...
    def images(self, indices: np.ndarray) -> np.ndarray: ...
    def factors(self, indices: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Encoded:
    """What a metric may use.

    Attributes:
        codes, factors: (N, D) and (N, K) of the rows to fit on.
        test_codes, test_factors: (M, D) and (M, K) of other rows; M may be 0 where there are few.
        sample_codes, sample_factors: for metrics that need no split: the rows to fit on where there are enough, else
            of both parts together, at most ``num_train``.
        factor_names: K names.
        rng: a generator of the metric's own: its numbers do not depend on which other metrics are asked for.
        sample_logvar: (N, D) log-variances of the posteriors of ``sample_codes``, None where they are not known.
        code_names: D names, or None.
    """

    codes: np.ndarray
    factors: np.ndarray
    test_codes: np.ndarray
    test_factors: np.ndarray
    sample_codes: np.ndarray
    sample_factors: np.ndarray
    factor_names: tuple[str, ...]
    rng: np.random.Generator
    sample_logvar: np.ndarray | None = None
    code_names: tuple[str, ...] | None = None

    @property
    def names(self) -> dict[str, Any]:
        """``code_names`` and ``factor_names`` as keyword arguments."""
        return {"code_names": self.code_names, "factor_names": self.factor_names}


@dataclass(frozen=True)
class _Entry:
    function: Callable[[Encoded], Result]
    default: bool
    needs_logvar: bool


# A metric joins `evaluate` by one entry.
_METRICS: dict[str, _Entry] = {}


def register(
    name: str, *, default: bool = True, needs_logvar: bool = False
) -> Callable[[Callable[[Encoded], Result]], Callable[[Encoded], Result]]:
    """Make a function of an :class:`Encoded` available to :func:`evaluate` under ``name``.

    Args:
        default: whether it runs where no metrics are named. needs_logvar: whether it needs the posteriors' variances.
    """

    def add(function: Callable[[Encoded], Result]) -> Callable[[Encoded], Result]:
        if name in _METRICS:
            raise ValueError(f"metrics: {name!r} is registered already")
        _METRICS[name] = _Entry(function, default, needs_logvar)
        return function

    return add


def names(*, default: bool = False) -> tuple[str, ...]:
    """The metrics that :func:`evaluate` knows, or those that run where none are named."""
    return tuple(name for name, entry in _METRICS.items() if entry.default or not default)


class Results(dict[str, Any]):
    """name -> result, in the order asked for.

    Attributes:
        seconds: what each metric took, and ``encoding``.
        num_train, num_test: rows that were fitted on, and rows that were held out. seed: that drew them.
    """

    def __init__(self, num_train: int, num_test: int, seed: int) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.num_train, self.num_test, self.seed = num_train, num_test, seed

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for JSON."""
        plain = {name: r.to_dict() if hasattr(r, "to_dict") else float(r) for name, r in self.items()}
        counts = {"num_train": self.num_train, "num_test": self.num_test, "seed": self.seed}
        return {**counts, "seconds": self.seconds, "metrics": plain}

    def save(self, path: str | os.PathLike) -> Path:
        """Write :meth:`to_dict` as JSON, all or nothing."""
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_text(text)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def summary(self) -> str:
        """A table of scores and seconds."""
        rows = [(name, [getattr(r, "score", r), self.seconds.get(name, np.nan)]) for name, r in self.items()]
        return table(f"{self.num_train}/{self.num_test} rows, seed {self.seed}", ["score", "seconds"], rows)

    def __str__(self) -> str:
        return "\n\n".join([self.summary(), *(str(result) for result in self.values())])


def check_metrics(metrics: str | Sequence[str] | None, logvar: bool = True) -> tuple[str, ...]:
    """The names asked for, each once: None stands for the default ones, "all" for all that can be computed.

    Raises:
        ValueError: an unknown name, none, or one that needs log-variances that are not there.
    """
    if metrics is None or _is_all(metrics):
        # What is not asked for by name is left out where its input is missing.
        wanted = names(default=metrics is None)
        return tuple(name for name in wanted if logvar or not _METRICS[name].needs_logvar)
    asked = tuple(dict.fromkeys((metrics,) if isinstance(metrics, str) else metrics))
    unknown = [name for name in asked if name not in _METRICS]
    if unknown or not asked:
        raise ValueError(f"metrics: expected names out of {sorted(_METRICS)} or 'all', got {unknown}")
    missing = [name for name in asked if _METRICS[name].needs_logvar and not logvar]
    if missing:
        raise ValueError(f"metrics: {missing[0]!r} needs the posteriors' log-variances, which are not given")
    return asked


def _is_all(metrics: str | Sequence[str]) -> bool:
    return metrics == "all" or tuple(metrics) == ("all",)


def evaluate(
    encode: Callable[[np.ndarray], Any],
    dataset: Dataset,
    metrics: str | Sequence[str] | None = None,
    *,
    seed: int = 0,
    num_train: int = 10000,
    num_test: int = 5000,
    batch_size: int = 256,
    indices: Any = None,
    progress: bool | Progress = False,
) -> Results:
    """Compute several metrics from codes that are encoded once.

    Args:
        encode: uint8 images (B, H, W, C) -> codes (B, D), numpy or torch; posterior means as a rule. Or a pair of codes
            and log-variances of the posteriors (B, D), which ``analytic_mig`` needs.
        dataset: images and factors by row number, as in ``strucfast.data``.
        metrics: names, see :func:`names`; None for the default ones, "all" for all. What cannot be computed and was
            not named (a Hoyer sparsity of a single code) is left out with a warning.
        seed: of the sampled rows and of everything random in the metrics.
        num_train, num_test: rows to encode; where there are fewer, all rows, split in the same proportion.
        batch_size: images a call of ``encode``.
        indices: rows to sample from (a test split); all rows by default.
        progress: True shows a bar; or a function of the stage ("encode" or a metric's name), done, and total.

    Returns:
        :class:`Results`, a dict of name -> result. The same seed gives the same rows and results.

    Raises:
        ValueError: an unknown metric, a data set without factors, codes of the wrong shape or not finite, and what the
            metrics raise.
    """
    _check_positive(num_train=num_train, batch_size=batch_size)
    check_metrics(metrics)
    if not dataset.factor_names:
        raise ValueError(
            "dataset: expected known factors of variation, got none; these metrics compare codes with factors"
        )
    pool = np.arange(len(dataset)) if indices is None else np.asarray(indices)
    if len(pool) == 0:
        raise ValueError("indices: expected at least one row, got none")
    chosen = _draw(len(pool), num_train, num_test, seed)
    rows = np.sort(pool[chosen])
    with _reporter(progress) as report:
        began = time.perf_counter()
        codes, logvar = _encode(encode, dataset, rows, batch_size, report)
        seconds = time.perf_counter() - began
        results = _compute(
            codes, logvar, dataset.factors(rows), metrics, seed, num_train, num_test, None, dataset.factor_names, report
        )
    results.seconds = {"encoding": seconds, **results.seconds}
    return results


def evaluate_codes(
    codes: Any,
    factors: Any,
    metrics: str | Sequence[str] | None = None,
    *,
    logvar: Any = None,
    seed: int = 0,
    num_train: int = 10000,
    num_test: int = 5000,
    code_names: Any = None,
    factor_names: Any = None,
    progress: bool | Progress = False,
) -> Results:
    """Compute several metrics of codes that are at hand: :func:`evaluate` without the encoding.

    Args:
        codes: (N, D), numpy or torch. factors: (N, K) integers.
        logvar: (N, D) log-variances of the posteriors whose means are ``codes``, for ``analytic_mig``.
        code_names, factor_names: D and K names for the printed tables.

    The other arguments, the result and the errors are those of :func:`evaluate`.
    """
    codes = check_codes(codes)
    column_range(codes, "codes")
    factors = check_factors(factors, len(codes))
    if logvar is not None:
        logvar = check_logvar(logvar, codes.shape)
    _check_positive(num_train=num_train)
    code_names = check_names("code_names", code_names, codes.shape[1])
    factor_names = check_names("factor_names", factor_names, factors.shape[1])
    if factor_names is None:
        factor_names = tuple(f"v{k}" for k in range(factors.shape[1]))
    rows = np.sort(_draw(len(codes), num_train, num_test, seed))
    with _reporter(progress) as report:
        picked = None if logvar is None else logvar[rows]
        names = (code_names, factor_names)
        return _compute(codes[rows], picked, factors[rows], metrics, seed, num_train, num_test, *names, report)


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value!r}")


def _draw(rows: int, num_train: int, num_test: int, seed: int) -> np.ndarray:
    if isinstance(num_test, bool) or not isinstance(num_test, (int, np.integer)) or num_test < 0:
        raise ValueError(f"num_test: expected an integer of at least 0, got {num_test!r}")
    return np.random.default_rng(seed).choice(rows, min(num_train + num_test, rows), replace=False)


def _encode(encode, dataset: Dataset, rows: np.ndarray, batch_size: int, report: Progress) -> tuple[Any, Any]:
    """Codes (N, D), and log-variances where ``encode`` gives them."""
    parts, spreads = [], []
    for begin in range(0, len(rows), batch_size):
        batch = rows[begin : begin + batch_size]
        found = encode(dataset.images(batch))
        if isinstance(found, tuple):
            if len(found) != 2:
                raise ValueError(f"encode: expected codes or (codes, logvar), got a tuple of {len(found)}")
            found, logvar = found
            spreads.append(logvar)
        codes = check_codes(found, "encode(images)")
        if len(codes) != len(batch):
            raise ValueError(f"encode: expected codes ({len(batch)}, D) for {len(batch)} images, got {codes.shape}")
        if spreads:
            spreads[-1] = check_logvar(spreads[-1], codes.shape)
        parts.append(codes)
        report("encode", begin + len(batch), len(rows))
    codes = np.concatenate(parts)
    column_range(codes, "codes")
    return codes, np.concatenate(spreads) if spreads else None


def _compute(
    codes: np.ndarray,
    logvar: np.ndarray | None,
    factors: np.ndarray,
    metrics: str | Sequence[str] | None,
    seed: int,
    num_train: int,
    num_test: int,
    code_names: tuple[str, ...] | None,
    factor_names: Sequence[str],
    report: Progress,
) -> Results:
    asked = check_metrics(metrics, logvar is not None)
    rows = len(codes)
    train = num_train if rows >= num_train + num_test else -(-rows * num_train // (num_train + num_test))
    order = np.random.default_rng([seed, 1]).permutation(rows)
    # In ascending order within each part: a result then does not hang on how rows were shuffled into it.
    fit, test, sample = np.sort(order[:train]), np.sort(order[train:]), np.sort(order[: min(num_train, rows)])
    results = Results(train, rows - train, seed)
    for place, name in enumerate(asked):
        report(name, place, len(asked))
        began = time.perf_counter()
        data = Encoded(
            codes=codes[fit],
            factors=factors[fit],
            test_codes=codes[test],
            test_factors=factors[test],
            sample_codes=codes[sample],
            sample_factors=factors[sample],
            factor_names=tuple(factor_names),
            rng=np.random.default_rng([seed, zlib.crc32(name.encode())]),
            sample_logvar=None if logvar is None else logvar[sample],
            code_names=code_names,
        )
        try:
            results[name] = _METRICS[name].function(data)
        except ValueError as error:
            if metrics is not None and not _is_all(metrics):
                raise
            warnings.warn(f"{name} is left out: {error}", stacklevel=3)
        else:
            results.seconds[name] = time.perf_counter() - began
        report(name, place + 1, len(asked))
    return results


@contextmanager
def _reporter(progress: bool | Progress) -> Iterator[Progress]:
    if callable(progress):
        yield progress
    elif progress:
        from tqdm import tqdm

        with tqdm(unit="image", leave=False) as bar:

            def report(stage: str, done: int, total: int) -> None:
                if stage != "encode":
                    bar.unit = "metric"
                bar.set_description(stage, refresh=False)
                bar.total, bar.n = total, done
                bar.refresh()

            yield report
    else:
        yield lambda stage, done, total: None
