import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, mutual_info_score
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from strucfast import metrics

GRID = np.stack(np.unravel_index(np.arange(20), (4, 5)), axis=1)


def test_perfect_codes():
    result = metrics.infomec(GRID[:, ::-1] * -2.0, GRID)
    assert result.modularity == result.compactness == result.score == pytest.approx(1, abs=1e-12)
    assert result.explicitness > 0.95
    np.testing.assert_allclose(result.information, [[0, 1], [1, 0]], atol=1e-12)
    discrete = metrics.infomec(GRID[:, ::-1] * -2.0, GRID, bins=None)
    assert discrete.score == pytest.approx(1, abs=1e-12) and discrete.explicitness > 0.99


def test_rotated_codes():
    rotated = np.column_stack([GRID.sum(axis=1), GRID[:, 0] - GRID[:, 1]]).astype(float)
    result = metrics.infomec(rotated, GRID)
    # The information of either code on the factors of 4 and 5 values, by hand in the golden file.
    shares = np.array([0.36356349395951243 / np.log(4), 0.5867070452737222 / np.log(5)])
    assert result.modularity == pytest.approx(2 * shares.max() / shares.sum() - 1, abs=1e-12)
    assert result.compactness == pytest.approx(0, abs=1e-12)


def test_information_and_explicitness_against_scikit_learn():
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(0, 3, 500), rng.integers(0, 4, 500)], axis=1)
    codes = (factors + 0.8 * rng.normal(size=(500, 2))) @ rng.normal(size=(2, 3))
    result = metrics.infomec(codes, factors, bins=8)
    scaled = StandardScaler().fit_transform(codes)
    for k, factor in enumerate(factors.T):
        entropy = mutual_info_score(factor, factor)
        for d, code in enumerate(codes.T):
            labels = np.searchsorted(np.linspace(code.min(), code.max(), 9)[1:-1], code, side="right")
            assert result.information[d, k] == pytest.approx(mutual_info_score(labels, factor) / entropy, abs=1e-12)
        model = LogisticRegression(C=np.inf).fit(scaled, factor)
        expected = 1 - log_loss(factor, model.predict_proba(scaled)) / entropy
        assert result.explicitness_per_factor[k] == pytest.approx(expected, abs=1e-4)


def test_discrete_codes_against_scikit_learn():
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 4, (400, 2))
    # Uneven levels, as a quantiser has them, one code with three.
    levels = np.array([-1.0, -0.3, 0.1, 5.0])
    codes = levels[np.where(rng.random((400, 2)) < 0.7, factors, rng.integers(0, 4, (400, 2)))]
    codes[:, 1] = np.minimum(codes[:, 1], 0.1)
    result = metrics.infomec(codes, factors, bins=None)
    hot = OneHotEncoder().fit_transform(codes)
    for k, factor in enumerate(factors.T):
        entropy = mutual_info_score(factor, factor)
        for d in range(2):
            labels = np.unique(codes[:, d], return_inverse=True)[1]
            assert result.information[d, k] == pytest.approx(mutual_info_score(labels, factor) / entropy, abs=1e-12)
        model = LogisticRegression(C=np.inf).fit(hot, factor)
        expected = 1 - log_loss(factor, model.predict_proba(hot)) / entropy
        assert result.explicitness_per_factor[k] == pytest.approx(expected, abs=1e-3)


def test_noise_is_not_explicit():
    rng = np.random.default_rng(0)
    result = metrics.infomec(rng.normal(size=(4000, 3)), rng.integers(0, 3, (4000, 2)))
    assert 0 <= result.explicitness < 0.01


def test_dead_codes_and_constant_factors():
    codes = np.column_stack([GRID, np.full(20, 3.0), 0.1 * np.sin(np.arange(20))])
    factors = np.column_stack([GRID, np.full(20, 8)])
    result = metrics.infomec(codes, factors)
    # A range of a twentieth of the largest one and less is not active.
    assert result.active.tolist() == [True, True, False, False]
    assert metrics.infomec(codes * [1, 1, 1, 1.5], factors).active.tolist() == [True, True, False, True]
    assert result.modularity == result.compactness == pytest.approx(1, abs=1e-12)
    assert np.isnan(result.modularity_per_code[2:]).all()
    assert np.isnan(result.compactness_per_factor[2]) and np.isnan(result.explicitness_per_factor[2])
    assert metrics.infomec(codes, factors, bins=None).active.tolist() == [True, True, False, True]
    dead = metrics.infomec(np.ones((20, 2)), GRID)
    assert dead.modularity == dead.compactness == 0 and dead.explicitness == pytest.approx(0, abs=1e-12)


def test_single_factor_and_single_code():
    one = metrics.infomec(GRID.astype(float), GRID[:, :1])
    # The code of the other factor says nothing of this one.
    assert one.modularity_per_code.tolist() == [1, 0] and one.compactness == pytest.approx(1)
    alone = metrics.infomec(GRID[:, :1].astype(float), GRID)
    assert alone.modularity == pytest.approx(1) and alone.compactness_per_factor.tolist() == [1, 0]
    with pytest.raises(ValueError, match="factors: expected a factor with at least two values"):
        metrics.infomec(GRID.astype(float), np.ones((20, 1), int))


def test_table_dict_plot_and_torch():
    result = metrics.infomec(torch.from_numpy(GRID).float(), torch.from_numpy(GRID), factor_names=("x", "y"))
    lines = str(result).splitlines()
    assert lines[0].startswith("InfoM 1.0000, InfoE 0.9") and "20 bins" in lines[0]
    assert lines[3].split() == ["z0", "1.0000", "0.0000", "1.0000"]
    assert "discrete codes" in str(metrics.infomec(GRID.astype(float), GRID, bins=None))
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["score"] == pytest.approx(1)
    assert [text.get_text() for text in result.plot().texts] == ["1.00", "0.00", "0.00", "1.00"]


def test_bad_input():
    codes = GRID.astype(float)
    with pytest.raises(ValueError, match="bins: expected a positive integer, got 0"):
        metrics.infomec(codes, GRID, bins=0)
    with pytest.raises(ValueError, match="factors: expected 20 rows"):
        metrics.infomec(codes, GRID[1:])
    with pytest.raises(ValueError, match="codes: expected finite values, got inf"):
        metrics.infomec(np.full((20, 1), np.inf), GRID)
    with pytest.raises(ValueError, match="factors: expected integers"):
        metrics.infomec(codes, GRID / 3)
