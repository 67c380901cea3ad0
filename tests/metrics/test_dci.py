import json
from pathlib import Path

import numpy as np
import pytest
import torch

from strucfast import metrics
from strucfast.metrics import _predictors

CASES = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())["cases"]


def grid(rows, sizes=(4, 5), seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, rows) for size in sizes], axis=1)


def split(codes, factors):
    half = len(codes) // 2
    return codes[:half], factors[:half], codes[half:], factors[half:]


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == "dci"])
def test_golden(case):
    expected = case["expected"]
    disentanglement, completeness, per_code, per_factor = metrics.dci_from_importance(case["inputs"]["importance"])
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(disentanglement, expected["disentanglement"], **close)
    np.testing.assert_allclose(completeness, expected["completeness"], **close)
    np.testing.assert_allclose(per_code, expected["disentanglement_per_code"], **close)
    np.testing.assert_allclose(per_factor, expected["completeness_per_factor"], **close)


def test_single_factor_and_single_code_score_one():
    assert metrics.dci_from_importance([[0.7], [0.3]])[0] == 1
    assert metrics.dci_from_importance([[0.7, 0.3]])[1] == 1
    assert metrics.dci_from_importance(np.zeros((3, 2)))[:2] == (0, 0)


@pytest.mark.parametrize("bins", [None, 256])
def test_perfect_codes(bins):
    factors = grid(2000)
    codes = np.stack([factors[:, 1] * 2.0, np.zeros(2000), -1.0 * factors[:, 0]], axis=1)
    result = metrics.dci(*split(codes, factors), bins=bins, factor_names=("shape", "size"))
    assert result.score == result.disentanglement == pytest.approx(1, abs=1e-8)
    assert result.completeness == result.completeness_unweighted == pytest.approx(1, abs=1e-8)
    assert result.informativeness_train == result.informativeness_test == 1
    np.testing.assert_allclose(result.importance, [[0, 1], [0, 0], [1, 0]], atol=1e-8)
    # The dead code between the two others neither stops the score nor counts in it.
    np.testing.assert_allclose(result.disentanglement_per_code, [1, 0, 1], atol=1e-8)
    assert "shape" in str(result) and result.to_dict()["num_test"] == 1000
    assert result.plot().get_title() == "DCI 1.000"


def test_mixed_codes_score_low():
    factors = grid(3000)
    mix = factors @ np.array([[1.0, 1.0], [1.0, -1.0]])
    result = metrics.dci(*split(mix + 0.1 * np.random.default_rng(0).normal(size=mix.shape), factors))
    assert result.disentanglement < 0.3 and result.completeness < 0.3
    assert result.informativeness_test > 0.9


def test_torch_gives_the_same_and_a_seed_decides():
    factors = grid(600)
    codes = (factors + 0.5 * np.random.default_rng(0).normal(size=factors.shape)).astype(np.float32)
    arrays = split(codes, factors)
    ours = metrics.dci(*arrays)
    np.testing.assert_array_equal(ours.importance, metrics.dci(*map(torch.from_numpy, arrays)).importance)
    np.testing.assert_array_equal(ours.importance, metrics.dci(*arrays).importance)


def test_without_the_host_module_scikit_learn_grows_the_trees(monkeypatch):
    factors = grid(300, (2, 3))
    codes = factors + 0.5 * np.random.default_rng(0).normal(size=factors.shape)
    ours = metrics.dci(*split(codes, factors))
    monkeypatch.setattr(_predictors, "host", lambda: None)
    theirs = metrics.dci(*split(codes, factors))
    assert ours.disentanglement == pytest.approx(theirs.disentanglement, abs=0.01)
    np.testing.assert_allclose(ours.accuracy_train, theirs.accuracy_train, atol=0.01)


@pytest.mark.parametrize("predictor", ["random_forest", "extra_trees", "logistic"])
def test_other_predictors(predictor):
    factors = grid(600, (3, 4))
    codes = factors[:, ::-1] + 0.05 * np.random.default_rng(0).normal(size=(600, 2))
    result = metrics.dci(*split(codes, factors), predictor=predictor)
    assert result.disentanglement > 0.5 and result.informativeness_test > 0.9
    assert (result.importance.argmax(axis=0) == [1, 0]).all()


@pytest.mark.parametrize("predictor", ["gbt", "lasso", "random_forest"])
def test_continuous_factors(predictor):
    rng = np.random.default_rng(0)
    factors = 1e4 + rng.normal(size=(2000, 2))
    codes = np.stack([factors[:, 1] - 1e4, rng.normal(size=2000), 1e4 - factors[:, 0]], axis=1)
    result = metrics.dci(*split(codes, factors), predictor=predictor, continuous=True)
    assert result.disentanglement > 0.95 and result.completeness > 0.95
    assert result.informativeness_test > 0.97
    assert (result.importance.argmax(axis=0) == [2, 0]).all()


def test_a_factor_with_one_value_counts_nowhere_and_an_unseen_class_is_an_error():
    factors = np.column_stack([grid(400), np.full(400, 3)])
    codes = factors[:, :2].astype(float)
    train, _, test, labels = split(codes, factors)
    labels = labels.copy()
    labels[:100, 0] = 9
    result = metrics.dci(train, factors[:200], test, labels)
    assert (result.importance[:, 2] == 0).all() and result.disentanglement == 1
    assert result.completeness_unweighted == 1
    assert result.accuracy_test[0] == 0.5 and result.accuracy_test[2] == 1


def test_bad_input():
    factors = grid(40)
    good = split(factors.astype(float), factors)
    with pytest.raises(ValueError, match="codes_test: expected 2 columns"):
        metrics.dci(good[0], good[1], good[2][:, :1], good[3])
    with pytest.raises(ValueError, match="factors_test: expected 2 columns"):
        metrics.dci(*good[:3], good[3][:, :1])
    with pytest.raises(ValueError, match="factors_train: expected 20 rows"):
        metrics.dci(good[0], good[1][:-1], *good[2:])
    with pytest.raises(ValueError, match="codes_train: expected finite values, got nan in row 3, column 1"):
        broken = good[0].copy()
        broken[3, 1] = np.nan
        metrics.dci(broken, *good[1:])
    with pytest.raises(ValueError, match="factors_train: expected integers, got 3.5 in row 0"):
        metrics.dci(good[0], good[1] + 0.5, *good[2:])
    with pytest.raises(ValueError, match="at least two values"):
        metrics.dci(good[0], np.ones_like(good[1]), *good[2:])
    with pytest.raises(ValueError, match="predictor: expected one of gbt"):
        metrics.dci(*good, predictor="gdt")
    with pytest.raises(ValueError, match="bins: expected None"):
        metrics.dci(*good, bins=1)
    with pytest.raises(ValueError, match="'lasso' is for continuous factors"):
        metrics.dci(*good, predictor="lasso")
    with pytest.raises(ValueError, match="non-empty"):
        metrics.dci(good[0][:0], *good[1:])
    with pytest.raises(ValueError, match="finite values >= 0"):
        metrics.dci_from_importance([[-1.0, 2.0]])
