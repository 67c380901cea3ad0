import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from strucfast.metrics import sap, sap_from_scores

CASES = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())["cases"]
GRID = np.stack(np.unravel_index(np.arange(20), (4, 5)), axis=1)
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == "codes"])
def test_golden_continuous(case):
    codes, factors = np.array(case["inputs"]["z"]).T, np.array(case["inputs"]["v"]).T
    result = sap(codes, factors, continuous=True)
    np.testing.assert_allclose(result.scores, case["expected"]["r2"], **CLOSE)
    np.testing.assert_allclose(result.score, case["expected"]["sap"], **CLOSE)


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == "sap_scores"])
def test_golden_scores(case):
    np.testing.assert_allclose(sap_from_scores(case["inputs"]["scores"])[0], case["expected"]["sap"], **CLOSE)


def problem(rows=400):
    rng = np.random.default_rng(0)
    factors = rng.integers(0, [3, 2], (rows, 2))
    codes = factors[:, ::-1] + 0.3 * rng.normal(size=(rows, 2))
    return codes, factors


def test_discrete_is_scikit_learns_classifier():
    codes, factors = problem()
    result = sap(codes[:300], factors[:300], codes[300:], torch.from_numpy(factors[300:]))
    expected = np.empty((2, 2))
    for d in range(2):
        for k in range(2):
            model = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
            model.fit(codes[:300, d : d + 1], factors[:300, k])
            expected[d, k] = model.score(codes[300:, d : d + 1], factors[300:, k])
    np.testing.assert_array_equal(result.scores, expected)
    assert result.score == pytest.approx(np.abs(expected[0] - expected[1]).mean())
    assert (result.num_train, result.num_test) == (300, 100)
    alone = sap(codes, factors)
    assert (alone.num_train, alone.num_test) == (400, 400) and alone.score > 0.2


def test_continuous_is_the_squared_correlation():
    codes, factors = problem()
    values = 1e6 + factors * [1e-3, 1e3]
    result = sap(codes, values, continuous=True)
    expected = np.corrcoef(codes.T, values.T)[:2, 2:] ** 2
    np.testing.assert_allclose(result.scores, expected, atol=1e-9)


def test_dead_codes_single_codes_and_constant_factors():
    codes, factors = problem()
    wide = np.column_stack([codes, np.full(400, 0.1)])
    for continuous in (True, False):
        full = sap(wide, np.column_stack([factors, np.ones(400, int)]), continuous=continuous)
        np.testing.assert_array_equal(full.scores[2], 0)
        assert np.isnan(full.per_factor[2]) and full.to_dict()["per_factor"][2] is None
        assert full.score == sap(codes, factors, continuous=continuous).score
        single = sap(codes[:, :1], factors, continuous=continuous)
        np.testing.assert_array_equal(single.per_factor, single.scores[0])
        with pytest.raises(ValueError, match="at least two values"):
            sap(codes, np.ones((400, 1)), continuous=continuous)
    assert sap_from_scores([[0.4, 0.2]])[0] == pytest.approx(0.3)


def test_bad_input():
    codes, factors = problem(20)
    with pytest.raises(ValueError, match="factors_test: expected both"):
        sap(codes, factors, codes)
    with pytest.raises(ValueError, match="codes_test: expected both"):
        sap(codes, factors, factors_test=factors)
    with pytest.raises(ValueError, match="codes_test: expected 2 columns as codes, got 1"):
        sap(codes, factors, codes[:, :1], factors)
    with pytest.raises(ValueError, match="factors_test: expected 2 columns as factors, got 1"):
        sap(codes, factors, codes, factors[:, :1])
    with pytest.raises(ValueError, match="factors_test: expected 20 rows"):
        sap(codes, factors, codes, factors[:5])
    with pytest.raises(ValueError, match="codes_test: expected finite values, got nan in row 0, column 0"):
        sap(codes, factors, codes * np.nan, factors)
    with pytest.raises(ValueError, match="codes: expected finite values"):
        sap(codes * np.nan, factors)
    with pytest.raises(ValueError, match="factors: expected integers, got"):
        sap(codes, factors + 0.5)
    with pytest.raises(ValueError, match="factors: expected finite values"):
        sap(codes, factors * np.nan, continuous=True)
    for bad in ([1.0], [[np.nan]]):
        with pytest.raises(ValueError, match="scores: expected"):
            sap_from_scores(bad)


def test_table_dict_and_plot():
    result = sap(GRID.astype(float), GRID, continuous=True, factor_names=("x", "y"))
    lines = str(result).splitlines()
    assert lines[0] == "SAP 1.0000  (20/20 samples, squared correlation)"
    assert lines[3].split() == ["z0", "1.0000", "0.0000"] and lines[-1].split() == ["gap", "1.0000", "1.0000"]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["continuous"] is True
    assert [text.get_text() for text in result.plot().texts] == ["1.00", "0.00", "0.00", "1.00"]
