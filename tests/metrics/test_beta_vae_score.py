import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from strucfast import metrics
from strucfast.metrics._interventions import SharedValues
from strucfast.metrics.beta_vae_score import _points

GRID = np.stack(np.unravel_index(np.arange(60), (3, 4, 5)), axis=1)
FEW = {"num_train": 600, "num_eval": 300, "batch_size": 16}


def test_perfect_codes_and_a_dead_one():
    codes = np.column_stack([GRID[:, 2] * -3.0, np.full(60, 7.0), GRID[:, 0], GRID[:, 1] * 0.5])
    result = metrics.beta_vae_score(codes, GRID, **FEW)
    assert result.score == result.train_accuracy == 1
    np.testing.assert_array_equal(result.confusion, np.diag(result.confusion.diagonal()))
    assert result.confusion.sum() == 300
    # The code of the factor that is fixed does not differ at all, and the dead one never does.
    assert result.difference[2, 0] == result.difference[0, 2] == result.difference[1, 3] == 0
    assert (result.difference[:, 1] == 0).all() and (result.difference > 0).sum() == 6


def test_points_are_mean_differences_of_pairs():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(60, 2))
    points, labels = _points(codes, SharedValues(GRID), 500, 7, np.random.default_rng(3))
    again = np.random.default_rng(3)
    counts = again.multinomial(500, [1 / 3] * 3)
    np.testing.assert_array_equal(np.bincount(labels), counts)
    first, other = SharedValues(GRID).draw_pairs(0, counts[0] * 7, again)
    expected = np.abs(codes[first] - codes[other]).reshape(-1, 7, 2).mean(axis=1)
    np.testing.assert_allclose(points[: counts[0]], expected, rtol=1e-12)


def test_score_is_that_of_scikit_learns_classifier():
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(0, 5, 2000) for _ in range(3)], axis=1)
    codes = (factors + rng.normal(size=(2000, 3))) @ rng.normal(size=(3, 4))
    result = metrics.beta_vae_score(codes, factors, num_train=900, num_eval=400, batch_size=4, seed=5)
    generator, groups = np.random.default_rng(5), SharedValues(factors)
    scaled = codes / codes.std(axis=0)
    train, labels = _points(scaled, groups, 900, 4, generator)
    points, wanted = _points(scaled, groups, 400, 4, generator)
    model = LogisticRegression().fit(train, labels)
    assert result.score == pytest.approx(model.score(points, wanted), abs=1e-12)
    assert result.train_accuracy == pytest.approx(model.score(train, labels), abs=1e-12)
    assert 0.4 < result.score < 0.99
    np.testing.assert_allclose(result.per_factor, result.confusion.diagonal() / np.bincount(wanted))


def test_scale_and_kind_do_not_matter():
    codes = GRID + 0.7 * np.random.default_rng(0).normal(size=(60, 3))
    first = metrics.beta_vae_score(codes, GRID, **FEW)
    # By powers of two, which change no digit.
    np.testing.assert_array_equal(
        metrics.beta_vae_score(codes * [2.0**-20, 2.0**10, 1], GRID, **FEW).confusion, first.confusion
    )
    tensor = metrics.beta_vae_score(torch.from_numpy(codes), torch.from_numpy(GRID), **FEW)
    np.testing.assert_array_equal(tensor.confusion, first.confusion)
    assert (metrics.beta_vae_score(codes, GRID, seed=1, **FEW).confusion != first.confusion).any()


def test_noise_scores_as_chance():
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(0, 6, 3000) for _ in range(3)], axis=1)
    assert 0.25 < metrics.beta_vae_score(rng.normal(size=(3000, 3)), factors, **FEW).score < 0.42


def test_defined_answers():
    constant = metrics.beta_vae_score(np.ones((60, 2)), GRID, **FEW)
    assert 0.25 < constant.score < 0.42
    assert (constant.confusion > 0).any(axis=0).sum() == 1
    one = metrics.beta_vae_score(GRID.astype(float), np.column_stack([np.full(60, 3), GRID[:, 0]]), **FEW)
    assert one.score == 1 and np.isnan(one.per_factor[0])
    with pytest.raises(ValueError, match="factors: expected a factor with at least two values, one of them in"):
        metrics.beta_vae_score(GRID.astype(float), np.arange(60)[:, None], **FEW)
    kept = np.random.default_rng(0).permutation(60)[:35]
    assert metrics.beta_vae_score(GRID[kept].astype(float), GRID[kept], **FEW).score > 0.97


def test_table_dict_and_plot():
    result = metrics.beta_vae_score(GRID.astype(float), GRID, factor_names="abc", **FEW)
    lines = str(result).splitlines()
    assert lines[0].startswith("BetaVAE score 1.0000  (300 points, 16 pairs each, 60 samples")
    assert lines[3].split() == ["a", "1.0000", "0.0000", "0.0000", "1.0000"]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["score"] == 1
    assert [text.get_text() for text in result.plot().texts][:3] == ["1.00", "0.00", "0.00"]


def test_bad_options():
    with pytest.raises(ValueError, match="num_eval: expected an integer of at least 1, got 0"):
        metrics.beta_vae_score(GRID.astype(float), GRID, num_eval=0)
    with pytest.raises(ValueError, match="factor_names: expected 3 names, got 2"):
        metrics.beta_vae_score(GRID.astype(float), GRID, factor_names=("a", "b"))
