import json
from pathlib import Path

import numpy as np
import pytest
import torch

from strucfast import metrics
from strucfast.metrics._interventions import SharedValues
from strucfast.metrics.factor_vae_score import least_varying

CASES = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())["cases"]
GRID = np.stack(np.unravel_index(np.arange(60), (3, 4, 5)), axis=1)
FEW = {"num_train": 600, "num_eval": 300, "batch_size": 16}


def noisy(factors, noise=0.1, seed=0):
    return factors + noise * np.random.default_rng(seed).normal(size=factors.shape)


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == "factorvae_votes"])
def test_golden_votes(case):
    classifier, train, score = metrics.majority_vote(case["inputs"]["train_votes"], case["inputs"]["eval_votes"])
    assert classifier.tolist() == case["expected"]["classifier"]
    assert train == pytest.approx(case["expected"]["train_accuracy"], rel=1e-12)
    assert score == pytest.approx(case["expected"]["eval_accuracy"], rel=1e-12)


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == "factorvae_pipeline"])
def test_golden_pipeline(case):
    batches = np.array(case["inputs"]["representations"])
    winners = least_varying(batches, np.array(case["inputs"]["global_variance"]))
    assert winners.tolist() == case["expected"]["argmin"]
    votes = np.zeros((2, batches.shape[2]), int)
    np.add.at(votes, (case["inputs"]["fixed_factor"], winners), 1)
    assert votes.tolist() == case["expected"]["votes"]


def test_winners_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    batches = 50 + rng.normal(size=(200, 17, 5)) * rng.uniform(0.1, 2, (200, 1, 5))
    variance = rng.uniform(0.5, 2, 5)
    expected = (batches.var(axis=1, ddof=1) / variance).argmin(axis=1)
    np.testing.assert_array_equal(least_varying(batches, variance), expected)
    # Equal codes tie exactly, whatever their offset: the first wins.
    same = np.repeat(batches[:, :, :1], 3, axis=2)
    assert (least_varying(same, np.full(3, 0.7)) == 0).all()


def test_perfect_codes_and_a_dead_one():
    # With 0/0 in the running, the dead code takes all votes and the score falls to 0.44.
    codes = np.column_stack([GRID[:, 2] * -3.0, np.full(60, 7.0), GRID[:, 0], GRID[:, 1] * 0.5])
    result = metrics.factor_vae_score(codes, GRID, **FEW)
    assert result.score == result.train_accuracy == 1
    assert result.classifier.tolist() == [2, -1, 0, 1]
    assert result.active.tolist() == [True, False, True, True]
    assert (result.eval_votes[:, 1] == 0).all() and result.eval_votes.sum() == 300
    assert result.train_votes.sum() == 600
    assert result.per_factor.tolist() == [1, 1, 1]


def test_collapsed_codes_are_pruned():
    codes = np.column_stack([GRID, noisy(np.zeros((60, 2)), 0.01)])
    assert metrics.factor_vae_score(codes, GRID, **FEW).active.tolist() == [True] * 3 + [False] * 2
    assert metrics.factor_vae_score(codes, GRID, min_std=0, **FEW).active.all()
    none = metrics.factor_vae_score(codes * 1e-4, GRID, **FEW)
    assert none.score == 0 and none.eval_votes.sum() == 0 and (none.classifier == -1).all()
    assert np.isnan(none.per_factor).all()
    assert none.to_dict()["per_factor"] == [None] * 3


def test_noise_scores_as_chance_and_mixing_costs():
    rng = np.random.default_rng(1)
    factors = np.stack([rng.integers(0, 6, 4000) for _ in range(3)], axis=1)
    noise = metrics.factor_vae_score(rng.normal(size=(4000, 3)), factors, num_train=6000, num_eval=3000)
    assert 0.28 < noise.score < 0.42
    good = metrics.factor_vae_score(noisy(factors), factors, **FEW)
    mixed = metrics.factor_vae_score(noisy(factors) @ rng.normal(size=(3, 3)), factors, **FEW)
    assert good.score == 1 > mixed.score


def test_scale_order_and_kind_do_not_matter():
    codes = noisy(GRID, 0.4)
    first = metrics.factor_vae_score(codes, GRID, min_std=0, **FEW)
    scaled = metrics.factor_vae_score(codes * [1e-6, 1e6, 4], GRID * 10 - 5, min_std=0, **FEW)
    np.testing.assert_array_equal(first.eval_votes, scaled.eval_votes)
    tensor = metrics.factor_vae_score(torch.from_numpy(codes), torch.from_numpy(GRID), min_std=0, **FEW)
    np.testing.assert_array_equal(first.eval_votes, tensor.eval_votes)
    other = metrics.factor_vae_score(codes, GRID, min_std=0, seed=1, **FEW)
    assert (other.eval_votes != first.eval_votes).any()


def test_a_grid_with_holes():
    kept = np.random.default_rng(0).permutation(60)[:35]
    result = metrics.factor_vae_score(GRID[kept].astype(float), GRID[kept], **FEW)
    assert result.score == 1


def test_factors_that_cannot_be_fixed_are_left_out():
    factors = np.column_stack([GRID[:, 0], np.full(60, 3), np.arange(60)])
    result = metrics.factor_vae_score(GRID.astype(float), factors, **FEW)
    # One factor is left: whatever wins, it is the right one.
    assert result.score == 1 and np.isnan(result.per_factor[1:]).all()
    assert result.eval_votes.sum(axis=1).tolist() == [300, 0, 0]
    for column in (1, 2):
        with pytest.raises(ValueError, match="factors: expected a factor with at least two values, one of them in"):
            metrics.factor_vae_score(GRID.astype(float), factors[:, [column]], **FEW)
    with pytest.raises(ValueError, match="expected a factor with at least two values"):
        metrics.factor_vae_score(np.zeros((1, 2)), np.zeros((1, 2), int), **FEW)


def test_drawn_rows_share_the_value():
    rng = np.random.default_rng(0)
    factors = np.column_stack([rng.integers(0, 7, 300), np.minimum(np.arange(300), 200)])
    groups = SharedValues(factors)
    for k in (0, 1):
        rows = groups.draw(k, 50, 9, rng)
        assert (factors[rows, k] == factors[rows[:, :1], k]).all()
        first, other = groups.draw_pairs(k, 500, rng)
        assert (factors[first, k] == factors[other, k]).all() and (first != other).all()
        assert len(set(factors[first, k])) == (7 if k == 0 else 1)
    # Values come as often as in the pool, every row of a value as often as the others.
    values = np.bincount(factors[groups.draw(0, 40_000, 1, rng)[:, 0], 0], minlength=7) / 40_000
    np.testing.assert_allclose(values, np.bincount(factors[:, 0]) / 300, atol=0.012)


def test_table_dict_and_plot():
    result = metrics.factor_vae_score(GRID.astype(float), GRID, factor_names="abc", code_names=("x", "y", "w"), **FEW)
    lines = str(result).splitlines()
    assert lines[0].startswith("FactorVAE score 1.0000  (600/300 votes, batches of 16, 60 samples")
    assert lines[3].split()[:4] == ["x", "1.0000", "0.0000", "0.0000"]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["classifier"] == [0, 1, 2]
    assert [text.get_text() for text in result.plot().texts][:3] == ["1.00", "0.00", "0.00"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_train": 0}, "num_train: expected an integer of at least 1, got 0"),
        ({"num_eval": 1.5}, "num_eval: expected an integer"),
        ({"batch_size": 1}, "batch_size: expected an integer of at least 2, got 1"),
        ({"min_std": -1}, "min_std: expected a finite number of at least 0, got -1"),
        ({"min_std": np.nan}, "min_std"),
        ({"code_names": ["a"]}, "code_names: expected 3 names, got 1"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        metrics.factor_vae_score(GRID.astype(float), GRID, **options)


@pytest.mark.parametrize("function", [metrics.factor_vae_score, metrics.beta_vae_score])
def test_bad_arrays(function):
    codes = GRID.astype(float)
    with pytest.raises(ValueError, match="factors: expected 60 rows, as many as codes, got 59"):
        function(codes, GRID[1:])
    with pytest.raises(ValueError, match="codes: expected finite values, got nan in row 0, column 0"):
        function(np.full((60, 2), np.nan), GRID)
    with pytest.raises(ValueError, match="factors: expected integers"):
        function(codes, GRID + 0.5)
    with pytest.raises(ValueError, match="codes: expected a non-empty array"):
        function(codes[:0], GRID[:0])
    with pytest.raises(TypeError, match="codes: expected real numbers"):
        function(codes.astype(str), GRID)


def test_bad_votes():
    with pytest.raises(ValueError, match=r"expected two non-empty arrays \(K, D\), got \(2, 1\) and \(1, 2\)"):
        metrics.majority_vote([[1], [2]], [[1, 2]])
    with pytest.raises(ValueError, match="variance: expected a code that varies"):
        least_varying(np.zeros((1, 2, 2)), np.zeros(2))
