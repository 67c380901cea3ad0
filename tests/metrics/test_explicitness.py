import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from strucfast.metrics import explicitness
from strucfast.metrics.explicitness import auc

CASES = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())["cases"]
GRID = np.stack(np.unravel_index(np.arange(20), (4, 5)), axis=1)


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == "auc"])
def test_golden_auc(case):
    scores, labels = np.array(case["inputs"]["score"]), np.array(case["inputs"]["label"])
    assert auc(scores, labels == 1) == pytest.approx(case["expected"]["auc"], abs=1e-15)


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 200) / 8, rng.random(200) < 0.3
    ahead = scores[positive][:, None] - scores[~positive]
    assert auc(scores, positive) == ((ahead > 0) + 0.5 * (ahead == 0)).mean()
    assert np.isnan(auc(scores, np.ones(200, bool))) and np.isnan(auc(scores, np.zeros(200, bool)))


def problem(rows=1500, seed=0):
    rng = np.random.default_rng(seed)
    factors = rng.integers(0, [5, 2, 3], (rows, 3)) * [1, -7, 100]
    mix = np.random.default_rng(99).normal(size=(3, 4)) / [[1.0], [7.0], [100.0]]
    return factors @ mix + 0.5 * rng.normal(size=(rows, 4)), factors


def test_areas_are_those_of_scikit_learn():
    codes, factors = problem()
    unseen, labels = problem(seed=1)
    result = explicitness(codes, factors, torch.from_numpy(unseen), torch.from_numpy(labels))
    mean, std = codes.mean(axis=0), codes.std(axis=0)
    expected_train = []
    for k in range(3):
        model = LogisticRegression().fit((codes - mean) / std, factors[:, k])
        np.testing.assert_array_equal(result.classes[k], model.classes_)
        chances = model.predict_proba((unseen - mean) / std).T
        areas = [roc_auc_score(labels[:, k] == c, p) for c, p in zip(model.classes_, chances)]
        np.testing.assert_allclose(result.per_class[k], areas, atol=1e-3)
        assert result.per_factor[k] == pytest.approx(np.mean(areas), abs=1e-3)
        chances = model.predict_proba((codes - mean) / std).T
        expected_train.append(np.mean([roc_auc_score(factors[:, k] == c, p) for c, p in zip(model.classes_, chances)]))
    assert result.score == pytest.approx(result.per_factor.mean(), abs=1e-12)
    assert result.score_train == pytest.approx(np.mean(expected_train), abs=1e-3)
    assert (result.num_train, result.num_test) == (1500, 1500)
    fitted = explicitness(codes.astype(np.float32), factors)
    assert fitted.score == fitted.score_train == pytest.approx(result.score_train, abs=1e-3)


def test_perfect_codes_and_dead_ones():
    factors = np.tile(GRID, (30, 1))
    result = explicitness(factors.astype(float), factors)
    assert result.score == 1
    # 0.1 in float32, whose standard deviation over equal values may be a rounding error.
    dead = np.column_stack([factors, np.full((600, 2), 0.1)]).astype(np.float32)
    assert explicitness(dead, factors).score == 1
    alone = explicitness(dead[:, 2:], factors)
    assert alone.score == 0.5 and (alone.per_factor == 0.5).all()


def test_codes_that_tell_nothing_score_one_half():
    rng = np.random.default_rng(0)
    result = explicitness(
        rng.normal(size=(3000, 2)),
        np.arange(3000)[:, None] % 4,
        rng.normal(size=(3000, 2)),
        rng.integers(0, 4, (3000, 1)),
    )
    assert result.score == pytest.approx(0.5, abs=0.02)


def test_missing_classes_and_constant_factors():
    codes, factors = problem(rows=400)
    wide = np.column_stack([factors, np.full(400, 3)])
    result = explicitness(codes, wide)
    assert np.isnan(result.per_factor[3]) and result.score == explicitness(codes, factors).score
    # Value 4 of the first factor is in no scored row, 9 in no fitted row.
    unseen, labels = problem(rows=400, seed=1)
    labels[labels[:, 0] == 4, 0] = 9
    result = explicitness(codes, factors, unseen, labels)
    np.testing.assert_array_equal(np.isnan(result.per_class[0]), [False] * 4 + [True])
    assert result.per_factor[0] == result.per_class[0][:4].mean()
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["per_class"][0][4] is None
    single = labels.copy()
    single[:, 1] = 0
    result = explicitness(codes, factors, unseen, single)
    assert np.isnan(result.per_factor[1]) and result.score == np.mean(result.per_factor[[0, 2]])
    with pytest.raises(ValueError, match="factors_test: expected a factor with at least two"):
        explicitness(codes, factors, unseen, np.zeros_like(labels))
    with pytest.raises(ValueError, match="factors: expected a factor with at least two values"):
        explicitness(codes, wide[:, 3:])


def test_bad_input():
    codes, factors = problem(rows=40)
    with pytest.raises(ValueError, match="codes: expected finite values, got nan in row 0, column 0"):
        explicitness(codes * np.nan, factors)
    with pytest.raises(ValueError, match="factors: expected integers"):
        explicitness(codes, factors + 0.5)
    with pytest.raises(ValueError, match="factors: expected 40 rows"):
        explicitness(codes, factors[1:])
    with pytest.raises(ValueError, match="factors_test: expected both"):
        explicitness(codes, factors, codes)
    with pytest.raises(ValueError, match="codes_test: expected 4 columns as codes, got 1"):
        explicitness(codes, factors, codes[:, :1], factors)
    with pytest.raises(ValueError, match="factor_names: expected 3 names, got 1"):
        explicitness(codes, factors, factor_names=["x"])


def test_table_and_plot():
    result = explicitness(GRID.astype(float), GRID, factor_names=("x", "y"))
    lines = str(result).splitlines()
    assert lines[0] == "Explicitness 1.0000  (20/20 samples)"
    assert lines[1].split() == ["x", "y"] and lines[3].split() == ["AUC", "1.0000", "1.0000"]
    assert lines[-1].split() == ["worst", "class", "1.0000", "1.0000"]
    assert [text.get_text() for text in result.plot().texts] == ["1.00", "1.00"]
