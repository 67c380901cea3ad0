"""Metrics of codes that come in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._evaluate import check_metrics, evaluate_codes
from ._inputs import check_codes, check_factors, check_finite


class Metric:
    """Collects codes and factors batch by batch and computes metrics of all of them.

    Used as torchmetrics' metrics are, so that a training loop can log scores every few hundred steps: ``update`` in
    each validation batch, then ``compute``, then ``reset``. torchmetrics is not needed.

    Args:
        metric: a name or names for :func:`strucfast.metrics.evaluate` ("mig", ("mig", "dci"), "all"), or a function of
            (codes, factors) such as ``strucfast.metrics.irs``.
        options: of the function; with names, those of :func:`strucfast.metrics.evaluate_codes` (``seed``,
            ``num_train``, ``factor_names``, ...).

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, metric: str | Sequence[str] | Callable[..., Any], **options: Any) -> None:
        self._metric, self._options = metric, options
        if not callable(metric):
            check_metrics(metric)
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._codes: list[np.ndarray] = []
        self._factors: list[np.ndarray] = []

    def __len__(self) -> int:
        """Rows so far."""
        return sum(map(len, self._codes))

    def update(self, codes: Any, factors: Any) -> None:
        """Add codes (B, D) and factors (B, K), numpy or torch; they are copied to the host, so they may be overwritten.

        Raises:
            ValueError: shapes that do not fit each other or the rows before, codes that are not finite.
        """
        codes = check_codes(codes)
        check_finite(codes)
        factors = check_factors(factors, len(codes))
        for name, array, kept in (("codes", codes, self._codes), ("factors", factors, self._factors)):
            if kept and kept[0].shape[1] != array.shape[1]:
                raise ValueError(f"{name}: expected {kept[0].shape[1]} columns as before, got {array.shape[1]}")
        self._codes.append(codes.copy())
        self._factors.append(factors.copy())

    def compute(self) -> Any:
        """The result (one name or a function) or the dict of results (several names) of all rows since ``reset``.

        Raises:
            ValueError: no rows, and what the metric raises.
        """
        if not self._codes:
            raise ValueError("Metric: expected rows from update() before compute(), got none")
        codes, factors = np.concatenate(self._codes), np.concatenate(self._factors)
        if callable(self._metric):
            return self._metric(codes, factors, **self._options)
        results = evaluate_codes(codes, factors, self._metric, **self._options)
        single = isinstance(self._metric, str) and self._metric != "all"
        return results[self._metric] if single else results
