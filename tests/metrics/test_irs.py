import json
from pathlib import Path

import numpy as np
import pytest
import torch

from strucfast.metrics import irs

CASES = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())["cases"]
GRID = np.stack(np.unravel_index(np.arange(20), (4, 5)), axis=1)
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == "codes"])
def test_golden(case):
    codes, factors = np.array(case["inputs"]["z"]).T, np.array(case["inputs"]["v"]).T
    expected = case["expected"]
    paper = irs(codes, factors, quantile=1.0)
    np.testing.assert_allclose(paper.score, expected["irs_q1"], **CLOSE)
    np.testing.assert_allclose(irs(codes, factors).score, expected["irs_q99"], **CLOSE)
    # The golden matrix has no rows of constant codes.
    np.testing.assert_allclose(paper.matrix[paper.deviation > 0], expected["irs_matrix_q1"], **CLOSE)


def definition(codes, factors, quantile):
    """The score and matrix by loops over values, with numpy's percentiles."""
    largest = np.abs(codes - codes.mean(axis=0)).max(axis=0)
    matrix = np.zeros((codes.shape[1], factors.shape[1]))
    for k, factor in enumerate(factors.T):
        left = []
        for value in np.unique(factor):
            part = codes[factor == value]
            left.append(np.percentile(np.abs(part - part.mean(axis=0)), 100 * quantile, axis=0))
        matrix[:, k] = 1 - np.mean(left, axis=0) / largest
    return np.average(matrix.max(axis=1), weights=largest), matrix


@pytest.mark.parametrize("quantile", [1, 0.99, 0.5, 0.013])
def test_grid_with_holes_by_definition(quantile):
    rng = np.random.default_rng(0)
    # Values that are never taken (3 of 7), values that come once, and combinations that are missing.
    factors = rng.choice([0, 1, 4, 5, 6], (211, 2)) * [1, -1000]
    factors = factors[factors[:, 0] * 1000 != -factors[:, 1]]
    factors[0] = [99, 99]
    codes = factors @ rng.normal(size=(2, 4)) + 100 * rng.normal(size=(len(factors), 4))
    result = irs(codes, factors, quantile)
    score, matrix = definition(codes, factors, quantile)
    np.testing.assert_allclose(result.matrix, matrix, **CLOSE)
    np.testing.assert_allclose(result.score, score, **CLOSE)
    np.testing.assert_array_equal(result.factor_of_code, matrix.argmax(axis=1))
    np.testing.assert_allclose(irs(torch.from_numpy(codes), torch.from_numpy(factors), quantile).score, score, **CLOSE)


def test_codes_around_zero_are_as_good_as_others():
    # A test of emptiness that looks at values drops codes of zeros, and sums of values count them.
    codes = (GRID - GRID.mean(axis=0)) * [1.0, 0.0]
    result = irs(codes, GRID)
    assert result.score == 1
    np.testing.assert_array_equal(result.factor_of_code, [0, -1])
    np.testing.assert_array_equal(result.matrix[1], 0)
    np.testing.assert_array_equal(result.deviation, [1.5, 0])


def test_constant_codes_are_left_out_whatever_their_mean_rounds_to():
    dead = np.full((20, 3), [0.1, 0.7, 3.3])
    assert (np.ascontiguousarray(dead.T).mean(axis=1) != dead[0]).any()
    assert irs(dead, GRID).score == 0
    result = irs(np.column_stack([GRID, dead]), GRID)
    assert result.score == irs(GRID.astype(float), GRID).score == 1
    np.testing.assert_array_equal(result.deviation[2:], 0)


def test_a_constant_factor_fixes_nothing():
    codes = np.random.default_rng(0).normal(size=(20, 2))
    factors = np.column_stack([GRID, np.ones(20, int)])
    result = irs(codes, factors, 0.5)
    np.testing.assert_array_equal(result.matrix[:, 2], 0)
    assert result.score == irs(codes, GRID, 0.5).score
    with pytest.raises(ValueError, match="at least two values"):
        irs(codes, factors[:, 2:])


def test_the_codes_are_left_alone():
    codes = np.ascontiguousarray(GRID[:, ::-1].astype(float))
    before = codes.copy()
    irs(codes, GRID)
    np.testing.assert_array_equal(codes, before)


@pytest.mark.parametrize("quantile", [0, 1.01, -1, np.nan, True, "0.5"])
def test_bad_quantile(quantile):
    with pytest.raises(ValueError, match=r"quantile: expected a number in \(0, 1\]"):
        irs(GRID.astype(float), GRID, quantile)


def test_bad_input():
    with pytest.raises(ValueError, match="codes: expected finite values, got inf in row 2, column 1"):
        irs(np.where(np.arange(40).reshape(20, 2) == 5, np.inf, 0.0), GRID)
    with pytest.raises(ValueError, match="factors: expected integers, got 0.5"):
        irs(GRID.astype(float), GRID + 0.5)
    with pytest.raises(ValueError, match="factors: expected 20 rows"):
        irs(GRID.astype(float), GRID[:-1])


def test_table_dict_and_plot():
    result = irs(np.column_stack([GRID, np.zeros(20)]), GRID, factor_names=("x", "y"))
    lines = str(result).splitlines()
    assert lines[0] == "IRS 1.0000  (20 samples, quantile 0.99)"
    assert lines[1].split() == ["x", "y", "robust", "deviation"]
    assert lines[3].split() == ["z0", "1.0000", "0.0000", "1.0000", "1.5000"]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["factor_of_code"] == [0, 1, -1]
    assert [text.get_text() for text in result.plot().texts][:2] == ["1.00", "0.00"]
