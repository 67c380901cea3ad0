import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from strucfast.metrics import modularity, modularity_from_information

CASES = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())["cases"]
GRID = np.stack(np.unravel_index(np.arange(20), (4, 5)), axis=1)
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == "codes"])
def test_golden_codes(case):
    inputs, expected = case["inputs"], case["expected"]
    result = modularity(np.array(inputs["z"]).T, np.array(inputs["v"]).T, bins=inputs["num_bins"])
    np.testing.assert_allclose(result.score, expected["modularity"], **CLOSE)
    np.testing.assert_allclose(result.active_only, expected["modularity_active_only"], **CLOSE)
    np.testing.assert_allclose(result.per_code, expected["modularity_per_code"], **CLOSE)
    np.testing.assert_allclose(result.mutual_information, expected["mi"], **CLOSE)


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == "modularity"])
def test_golden_matrix(case):
    score, active_only, per_code = modularity_from_information(case["inputs"]["mi"])
    np.testing.assert_allclose(score, case["expected"]["modularity"], **CLOSE)
    np.testing.assert_allclose(active_only, case["expected"]["modularity_active_only"], **CLOSE)
    np.testing.assert_allclose(per_code, case["expected"]["per_code"], **CLOSE)


def test_from_scikit_learns_information():
    rng = np.random.default_rng(0)
    factors = rng.integers(0, [4, 7, 2], (1000, 3))
    codes = factors @ rng.normal(size=(3, 5)) + 0.3 * rng.normal(size=(1000, 5))
    template = []
    for code in codes.T:
        label = np.digitize(code, np.histogram(code, 20)[1][:-1])
        information = np.array([mutual_info_score(label, factor) for factor in factors.T])
        ideal = np.where(np.arange(3) == information.argmax(), information, 0)
        template.append(1 - ((information - ideal) ** 2).sum() / (information.max() ** 2 * 2))
    result = modularity(codes, torch.from_numpy(factors))
    np.testing.assert_allclose(result.per_code, template, rtol=1e-9)
    assert result.score == result.active_only == pytest.approx(np.mean(template), rel=1e-9)


def test_dead_codes_single_factors_and_constant_factors():
    # Rotated codes tell as much about one factor as about the other, so that a third, constant one would show.
    codes = np.stack([GRID[:, 0] + GRID[:, 1], GRID[:, 0] - GRID[:, 1], np.full(20, 3)], axis=1).astype(float)
    two, three = modularity(codes, GRID), modularity(codes, np.column_stack([GRID, np.ones(20, int)]))
    np.testing.assert_array_equal(two.per_code, three.per_code)
    assert two.per_code[2] == 0 and two.active_only == pytest.approx(1.5 * two.score)
    single = modularity(codes, GRID[:, :1])
    np.testing.assert_array_equal(single.per_code, [1, 1, 0])
    assert modularity(codes[:, 2:], GRID).active_only == 0
    assert modularity_from_information([[1e-200, 0.0]])[2] == [1.0]
    with pytest.raises(ValueError, match="factors: expected a factor with at least two values"):
        modularity(codes, np.ones((20, 2), int))


def test_bad_input():
    with pytest.raises(ValueError, match="codes: expected finite values, got nan in row 0"):
        modularity(np.full((20, 1), np.nan), GRID)
    with pytest.raises(ValueError, match="factors: expected 20 rows"):
        modularity(GRID.astype(float), GRID[:5])
    with pytest.raises(ValueError, match="bins: expected a positive integer"):
        modularity(GRID.astype(float), GRID, bins=0)
    with pytest.raises(ValueError, match="codes: expected a non-empty array"):
        modularity(np.zeros((0, 2)), np.zeros((0, 1), int))
    for bad in ([1.0], [[-1.0]], [[np.nan]]):
        with pytest.raises(ValueError, match="information: expected"):
            modularity_from_information(bad)


def test_table_dict_and_plot():
    result = modularity(GRID.astype(float), GRID, code_names=("a", "b"), factor_names=("x", "y"))
    lines = str(result).splitlines()
    assert lines[0].startswith("Modularity 1.0000, of active codes 1.0000")
    assert lines[1].split() == ["x", "y", "modular"]
    assert lines[3].split() == ["a", "1.3863", "0.0000", "1.0000"]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["factor_names"] == ["x", "y"]
    assert [text.get_text() for text in result.plot().texts] == ["1.00", "0.00", "0.00", "1.00"]
