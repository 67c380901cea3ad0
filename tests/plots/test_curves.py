"""Loss curves: sorting of records, axes, errors."""

import math

import pytest

from strucfast.plots import loss_curves
from strucfast.plots.curves import distinct_terms, history_terms, wants_log_axis


def test_terms_are_sorted_by_split_with_the_loss_first(history):
    terms = history_terms([{"step": 1, "split": "train", "kl": 2.0, "loss": 3.0, "note": "x"}, *history])
    assert list(terms) == ["loss", "kl", "reconstruction"]
    steps, values = terms["loss"]["validation"]
    assert steps == [100, 200, 300, 400, 500] and values == sorted(values, reverse=True)


def test_values_not_finite_are_left_out():
    records = [
        {"step": step, "split": "train", "loss": loss} for step, loss in enumerate([1.0, math.nan, math.inf, None, 2.0])
    ]
    assert history_terms(records) == {"loss": {"train": ([0.0, 4.0], [1.0, 2.0])}}


def test_a_term_equal_to_the_loss_is_not_shown_twice():
    records = [{"step": 1, "split": "train", "loss": 2.0, "reconstruction": 2.0, "kl": 1.0}]
    assert list(distinct_terms(history_terms(records))) == ["loss", "kl"]


def test_terms_of_a_second_optimizer_are_compared_with_its_own_loss():
    second = ("loss", "discriminator", "penalty", "grad_norm")
    names = ("loss", "kl", *(f"optimizer_1.{name}" for name in second))
    records = [{"step": 1, "split": "train", **dict(zip(names, (3.0, 1.0, 0.7, 0.7, 3.0, 9.0)))}]
    assert list(distinct_terms(history_terms(records))) == ["loss", "kl", "optimizer_1.loss", "optimizer_1.penalty"]


def test_axis_is_log_over_a_decade_of_positive_values(history):
    assert wants_log_axis([1.0, 20.0]) and not wants_log_axis([0.0, 20.0]) and not wants_log_axis([5.0, 6.0])
    figure = loss_curves(history)
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log", "log"]
    flat = loss_curves([{"step": step, "split": "train", "loss": 5.0 + step} for step in range(3)])
    assert [axes.get_yscale() for axes in flat.axes] == ["linear"]


def test_curves_hold_the_histories_points(history):
    axes = loss_curves(history, terms=["kl"]).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"train", "validation"}
    assert list(lines["train"].get_xdata()) == list(range(10, 510, 10))
    assert lines["validation"].get_ydata()[-1] == history[-1]["kl"]


@pytest.mark.parametrize(
    ("records", "options", "words"),
    [
        ([], {}, "at least one record"),
        ([{"step": 1, "split": "train", "loss": math.nan}], {}, "at least one record"),
        ([{"step": 1, "loss": 1.0}], {}, "record 0"),
        ([{"step": 1, "split": "train", "loss": 1.0}], {"terms": ["kl"]}, "terms: expected"),
    ],
)
def test_bad_histories_say_what_is_missing(records, options, words):
    with pytest.raises(ValueError, match=words):
        loss_curves(records, **options)
