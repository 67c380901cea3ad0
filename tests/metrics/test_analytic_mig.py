import json

import numpy as np
import pytest
import torch

from strucfast import metrics

GRID = np.stack(np.unravel_index(np.arange(60), (3, 4, 5)), axis=1)
HALF = 0.5 * np.log(2 * np.pi * np.e)


def entropy_by_quadrature(mean, std):
    """Of the mixture of N(mean_n, std_n^2) in one dimension."""
    z = np.linspace((mean - 9 * std).min(), (mean + 9 * std).max(), 20_001)
    density = np.exp(-0.5 * ((z[:, None] - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    q = density.mean(axis=1)
    return -np.trapezoid(q * np.log(np.maximum(q, 1e-300)), z)


def test_against_quadrature():
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(0, 3, 40), rng.random(40) < 0.2], axis=1)
    mean = factors @ rng.normal(size=(2, 3)) + 0.2 * rng.normal(size=(40, 3))
    # The rare value of the second factor has wide posteriors, so that its share of the rows matters.
    logvar = rng.normal(size=(40, 3)) - 2 + 3 * factors[:, 1:]
    result = metrics.analytic_mig(mean, logvar, factors, num_samples=20_000, seed=1)
    std = np.exp(logvar / 2)
    whole = np.array([entropy_by_quadrature(mean[:, d], std[:, d]) for d in range(3)])
    # A standard error is about 0.7 / sqrt(20,000) = 0.005.
    np.testing.assert_allclose(result.code_entropy, whole, atol=0.025)
    for k, factor in enumerate(factors.T):
        for d in range(3):
            parts = [entropy_by_quadrature(mean[factor == v, d], std[factor == v, d]) for v in np.unique(factor)]
            expected = np.average(parts, weights=np.bincount(factor))
            assert result.conditional_entropy[d, k] == pytest.approx(expected, abs=0.025)
    information = np.sort(np.maximum(result.code_entropy[:, None] - result.conditional_entropy, 0), axis=0)
    np.testing.assert_allclose(result.mutual_information.max(axis=0), information[-1])
    per_factor = (information[-1] - information[-2]) / result.factor_entropy
    np.testing.assert_allclose(result.per_factor, per_factor)
    assert result.score == pytest.approx(per_factor.mean())


def test_perfect_codes_and_one_that_is_the_prior():
    mean = np.column_stack([GRID * 100.0, np.zeros(60)])
    logvar = np.zeros(mean.shape)
    result = metrics.analytic_mig(mean, logvar, GRID, num_samples=8000)
    entropy = np.log([3, 4, 5])
    np.testing.assert_allclose(result.factor_entropy, entropy)
    np.testing.assert_allclose(result.code_entropy, [*(HALF + entropy), HALF], atol=0.04)
    np.testing.assert_allclose(result.mutual_information[:3].diagonal(), entropy, atol=0.06)
    assert (result.mutual_information[3] < 0.05).all()
    assert result.score == pytest.approx(1, abs=0.06)
    # The means alone would tell a narrow code from a wide one no better.
    blurred = metrics.analytic_mig(mean, logvar + 2 * np.log(1000), GRID, num_samples=2000)
    assert blurred.score < 0.06
    assert metrics.mig(mean, GRID).score == pytest.approx(1, abs=1e-9)


def test_holes_single_values_and_one_code():
    kept = np.random.default_rng(0).permutation(60)[:41]
    factors = np.column_stack([GRID, np.full(60, 4)])[kept]
    mean = GRID[kept] * 100.0
    result = metrics.analytic_mig(mean, np.zeros(mean.shape), factors, num_samples=4000)
    counts = np.bincount(GRID[kept, 2])
    assert result.factor_entropy[2] == pytest.approx((counts / 41 * np.log(41 / counts)).sum())
    assert np.isnan(result.per_factor[3]) and result.per_factor[:3].min() > 0.5
    assert result.mutual_information[:, 3].tolist() == [0, 0, 0]
    alone = metrics.analytic_mig(mean[:, :1], np.zeros((41, 1)), factors[:, :1], num_samples=4000)
    assert alone.score == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="factors: expected a factor with at least two values"):
        metrics.analytic_mig(mean, np.zeros(mean.shape), factors[:, 3:])


def test_values_of_a_single_row():
    mean = np.arange(8.0)[:, None] * 50
    result = metrics.analytic_mig(mean, np.zeros((8, 1)), np.arange(8)[:, None], num_samples=8000)
    assert result.mutual_information[0, 0] == pytest.approx(np.log(8), abs=0.05)


def test_normalised_by_the_log_of_the_number_of_values():
    factors = np.repeat([0, 1], [30, 10])[:, None]
    mean = factors * 100.0
    by_entropy = metrics.analytic_mig(mean, np.zeros((40, 1)), factors)
    by_log = metrics.analytic_mig(mean, np.zeros((40, 1)), factors, normalise="log")
    entropy = 0.75 * np.log(4 / 3) + 0.25 * np.log(4)
    assert by_log.score / by_entropy.score == pytest.approx(entropy / np.log(2))


def test_seed_kinds_and_names():
    rng = np.random.default_rng(0)
    mean, logvar = rng.normal(size=(60, 2)).astype(np.float32), rng.normal(size=(60, 2)).astype(np.float32)
    first = metrics.analytic_mig(mean, logvar, GRID, num_samples=500, factor_names="abc")
    again = metrics.analytic_mig(torch.from_numpy(mean), torch.from_numpy(logvar), GRID, num_samples=500)
    np.testing.assert_array_equal(first.mutual_information, again.mutual_information)
    other = metrics.analytic_mig(mean, logvar, GRID, num_samples=500, seed=1)
    assert (first.code_entropy != other.code_entropy).all()
    lines = str(first).splitlines()
    assert "60 posteriors, 500 samples" in lines[0] and lines[1].split() == ["a", "b", "c", "entropy"]
    assert json.loads(json.dumps(first.to_dict(), allow_nan=False))["num_posteriors"] == 60
    assert len(first.plot().texts) == 6
    half = metrics.analytic_mig(torch.from_numpy(mean).bfloat16(), torch.from_numpy(logvar).bfloat16(), GRID)
    assert np.isfinite(half.score)


def test_bad_input():
    good = np.zeros((60, 2))
    for arguments, options, match in [
        ((good, good[:, :1], GRID), {}, r"logvar: expected mean's shape \(60, 2\), got \(60, 1\)"),
        ((good, good * np.nan, GRID), {}, "logvar: expected finite values"),
        ((torch.full((60, 2), np.inf), torch.zeros(60, 2), GRID), {}, "mean: expected finite values"),
        ((torch.zeros(60), torch.zeros(60), GRID), {}, r"mean: expected floats \(N, D\), got torch.float32 \(60,\)"),
        ((good, good, GRID[1:]), {}, "factors: expected 60 rows"),
        ((good, good, GRID + 0.5), {}, "factors: expected integers"),
        ((good, good, GRID), {"num_samples": 0}, "num_samples: expected an integer of at least 1, got 0"),
        ((good, good, GRID), {"normalise": "max"}, "normalise: expected 'entropy' or 'log', got 'max'"),
    ]:
        with pytest.raises(ValueError, match=match):
            metrics.analytic_mig(*arguments, **options)
