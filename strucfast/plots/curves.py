"""Loss curves from a run's history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# fields of a history record that are no loss term
BOOKKEEPING = frozenset({"step", "epoch", "split", "images_per_s", "seconds", "time", "learning_rate", "grad_norm"})

Series = dict[str, tuple[list[float], list[float]]]


def history_terms(history: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Sorts history records into term -> split -> (steps, values); "loss" comes first, values not finite are left out.

    A record is a mapping with "step", "split" ("train" or "validation") and any number of named loss terms.
    """
    terms: dict[str, Series] = {}
    for number, record in enumerate(history):
        if "step" not in record or "split" not in record:
            raise ValueError(
                f"history: expected every record to have 'step' and 'split', record {number} has {sorted(record)}"
            )
        for name, value in record.items():
            if (
                name.rpartition(".")[2] in BOOKKEEPING
                or isinstance(value, bool)
                or not isinstance(value, Real)
                or not math.isfinite(value)
            ):
                continue
            steps, values = terms.setdefault(name, {}).setdefault(str(record["split"]), ([], []))
            steps.append(float(record["step"]))
            values.append(float(value))
    return dict(sorted(terms.items(), key=lambda item: item[0] != "loss"))


def wants_log_axis(values: Sequence[float]) -> bool:
    """A log axis helps when all values are positive and span more than one decade."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 10


def loss_curves(history: Sequence[Mapping[str, Any]], terms: Sequence[str] | None = None) -> Figure:
    """One panel per loss term over the training step, train and validation in each; log axis over a decade or more.

    history: records as ``strucfast.training.Run.history()`` returns them. terms: names to show (default all, without
    terms that repeat the loss). Raises ValueError for a history without losses or an unknown term.
    """
    from matplotlib.figure import Figure

    found = distinct_terms(history_terms(history))
    if not found:
        raise ValueError("history: expected at least one record with a finite loss, got none")
    names = list(found) if terms is None else list(terms)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(f"terms: expected names out of {list(found)}, got {unknown}")
    figure = Figure(figsize=(4.5 * len(names), 3.2), layout="constrained")
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        every = []
        for split, (steps, values) in found[name].items():
            axes.plot(steps, values, label=split, linewidth=1.0 if split == "train" else 2.0)
            every += values
        if wants_log_axis(every):
            axes.set_yscale("log")
        axes.set_title(name, parse_math=False)
        axes.set_xlabel("step")
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
    return figure


def distinct_terms(terms: dict[str, Series]) -> dict[str, Series]:
    """Drops terms whose every value equals the loss: a plain autoencoder's "reconstruction" says nothing new.

    The terms of a further optimizer ("optimizer_1.discriminator") are compared with its own loss ("optimizer_1.loss").
    """
    losses = {name: f"{name.rpartition('.')[0]}.loss".lstrip(".") for name in terms}
    return {name: s for name, s in terms.items() if name == losses[name] or s != terms.get(losses[name])}
