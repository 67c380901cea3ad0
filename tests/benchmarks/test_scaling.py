"""Slopes and crossing points: known exponents come back, a size that loses is noticed, bad rows are named."""

import math

import pytest

from benchmarks._scaling import Series, report, series_of, slope

SIZES = (32, 128, 512, 2048, 8192)


def rows(provider, cost, sizes=SIZES, **changes):
    shared = {"op": "mmd", "direction": "both", "dtype": "float32", "layout": "contiguous", "axis": "batch"}
    return [
        shared | {"case": f"batch {n}, D 10", "provider": provider, "value": n, "median_ms": cost(n)} | changes
        for n in sizes
    ]


def only(*groups) -> Series:
    (series,) = series_of([row for group in groups for row in group])
    return series


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_slope_of_a_power_law(power):
    series = only(rows("strucfast", lambda n: 3e-4 * n**power))
    assert series.slope("strucfast") == pytest.approx(power, abs=1e-12)


def test_slope_leaves_out_what_a_call_costs():
    """0.05 ms a call hide the square at small sizes; least squares over all five would say less than 1.5."""
    series = only(rows("strucfast", lambda n: 0.05 + 1e-7 * n**2))
    logs = [(math.log(n), math.log(0.05 + 1e-7 * n**2)) for n in SIZES[2:]]
    mean = [sum(part) / 3 for part in zip(*logs)]
    expected = sum((x - mean[0]) * (y - mean[1]) for x, y in logs) / sum((x - mean[0]) ** 2 for x, _ in logs)
    assert series.slope("strucfast") == pytest.approx(expected, abs=1e-12)
    assert expected > 1.4


def test_slope_is_least_squares_and_not_the_ends_alone():
    # Logs to base 2: costs 0, 2, 4 with the middle raised by 3; the line's slope keeps 2, its middle cannot.
    assert slope([1, 2, 4], [1, 2**5, 2**4]) == pytest.approx(2.0)
    assert slope([1, 2, 4, 8], [1, 2, 2, 8]) == pytest.approx(0.9)


def test_slope_of_few_sizes():
    assert slope([], []) is None and slope([4], [1.0]) is None
    # The last size stands alone within a factor of 32: the one before it counts.
    assert slope([1, 10, 1000], [5.0, 1.0, 100.0]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="expected different sizes, got 7"):
        slope([7, 7], [1.0, 2.0])


def test_slope_of_memory_skips_rows_without_it():
    points = rows("strucfast", lambda n: 1.0)
    for row in points[1:]:
        row["extra_bytes"] = 40 * row["value"]
    series = only(points, rows("eager", lambda n: 1.0))
    assert series.slope("strucfast", "extra_bytes") == pytest.approx(1.0)
    assert series.slope("eager", "extra_bytes") is None and series.slope("torch.compile") is None


def test_crossing_is_where_ours_starts_to_win_and_stays_ahead():
    ours = rows("strucfast", lambda n: 100.0 + n)
    linear = only(ours, rows("eager", lambda n: 1.5 * n))
    assert linear.crossing("eager") == 512 and linear.wins_from("eager") == "512"
    assert linear.ratio("eager", 2048) == pytest.approx(1.5 * 2048 / 2148)
    # A win below a loss is no crossing.
    dented = only(ours, rows("eager", lambda n: 1.0 if n == 2048 else 1e6))
    assert dented.crossing("eager") == 8192


def test_a_tie_is_no_loss_and_a_win_before_a_loss_is_said():
    ours = rows("strucfast", lambda n: 1.0 * n)
    tie = only(ours, rows("eager", lambda n: 0.96 * n))
    assert tie.crossing("eager") == 32 and tie.wins_from("eager") == "every size"
    early = only(ours, rows("eager", lambda n: n * (1.5 if n < 1000 else 0.9)))
    assert early.crossing("eager") is None and early.wins_from("eager") == "only at 32, 128, 512"


def test_crossing_of_a_rival_that_always_or_never_wins_or_stops_early():
    ours = rows("strucfast", lambda n: 1.0 * n)
    assert only(ours, rows("eager", lambda n: 2.0 * n)).wins_from("eager") == "every size"
    never = only(ours, rows("eager", lambda n: 0.5 * n))
    assert never.crossing("eager") is None and never.wins_from("eager") == "no size measured"
    short = only(ours, rows("eager", lambda n: 60.0, SIZES[:2]))
    assert short.shared("eager") == [32, 128] and short.wins_from("eager") == "only at 32"
    assert short.wins_from("torch.compile") == "–"


def test_rows_fall_into_series_by_what_stays():
    ours = rows("strucfast", lambda n: 1.0)
    found = series_of(
        [
            *ours,
            {"op": "mmd", "case": "no axis", "provider": "eager", "direction": "both", "median_ms": 1.0},
            *rows("eager", lambda n: 2.0),
            *rows("strucfast", lambda n: 1.0, direction="forward"),
            *[row | {"case": f"batch {row['value']}, D 64"} for row in ours],
        ]
    )
    assert [(s.direction, s.fixed, list(s.rows)) for s in found] == [
        ("both", "D 10", ["strucfast", "eager"]), ("forward", "D 10", ["strucfast"]), ("both", "D 64", ["strucfast"]),
    ]  # fmt: skip
    assert found[0].values == list(SIZES)


@pytest.mark.parametrize("value", [None, 0, -3, math.inf, math.nan, "8", True])
def test_a_value_that_is_no_size_is_named(value):
    with pytest.raises(ValueError, match=r"mmd batch 32, D 10 both eager: value must be a positive number, got "):
        series_of([row | {"value": value} for row in rows("eager", lambda n: 1.0, (32,))])


def test_a_repeated_value_is_named():
    with pytest.raises(ValueError, match="mmd batch 32, D 10 both eager repeats batch 32"):
        series_of(2 * rows("eager", lambda n: 1.0, (32,)))


def test_report_has_one_line_a_series_and_is_empty_without_any():
    assert report([]) == [] and report([{"op": "mmd"}]) == []
    lines = report([*rows("strucfast", lambda n: 1.0 * n), *rows("eager", lambda n: 0.01 * n**2)])
    assert len(lines) == 2
    assert lines[1].split() == "mmd batch 32 to 8192 both 1.00 eager 2.00, 0.32x to 81.92x, 128".split()
