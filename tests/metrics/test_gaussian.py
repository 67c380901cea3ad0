import json

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from strucfast.metrics import gaussian_total_correlation, wasserstein_correlation

BOTH = (gaussian_total_correlation, wasserstein_correlation)


def codes_with(covariance, rows=50, seed=0):
    """Codes whose sample covariance is the given one."""
    noise = np.random.default_rng(seed).normal(size=(rows, len(covariance)))
    noise -= noise.mean(axis=0)
    white = np.linalg.qr(noise)[0] * np.sqrt(rows - 1)
    return white @ np.linalg.cholesky(covariance).T + 3.0


@pytest.mark.parametrize("rho", [0.0, 0.3, -0.99])
def test_two_codes(rho):
    a, b = 2.0, 0.25
    codes = codes_with(np.array([[a, rho * np.sqrt(a * b)], [rho * np.sqrt(a * b), b]]))
    assert gaussian_total_correlation(codes).score == pytest.approx(-0.5 * np.log(1 - rho**2), abs=1e-12)
    # The root of a 2 x 2 matrix has trace sqrt(tr + 2 sqrt(det)), of [[a^2, r a b], [r a b, b^2]] here.
    trace = np.sqrt(a**2 + b**2 + 2 * a * b * np.sqrt(1 - rho**2))
    result = wasserstein_correlation(codes)
    assert result.score == pytest.approx(2 * (a + b) - 2 * trace, abs=1e-12)
    assert result.normalised == pytest.approx(result.score / (a + b), abs=1e-12)


def test_against_torch_and_scipy():
    rng = np.random.default_rng(1)
    codes = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    covariance = np.cov(codes.T)
    own = MultivariateNormal(torch.zeros(6, dtype=torch.float64), torch.from_numpy(covariance))
    product = MultivariateNormal(torch.zeros(6, dtype=torch.float64), torch.from_numpy(np.diag(np.diag(covariance))))
    total = gaussian_total_correlation(torch.from_numpy(codes))
    np.testing.assert_allclose(total.covariance, covariance, rtol=1e-12)
    np.testing.assert_allclose(total.score, kl_divergence(own, product).item(), rtol=1e-9)
    root = scipy.linalg.sqrtm(np.diag(np.diag(covariance)) @ covariance)
    expected = 2 * np.trace(covariance) - 2 * np.trace(root).real
    np.testing.assert_allclose(wasserstein_correlation(codes).score, expected, rtol=1e-9)


def test_units():
    codes = np.random.default_rng(2).normal(size=(40, 3)) @ np.array([[1.0, 0.5, 0], [0, 1, 0.5], [0, 0, 1]])
    scaled = codes * [1e-9, 1.0, 1e9]
    assert gaussian_total_correlation(scaled).score == pytest.approx(gaussian_total_correlation(codes).score, rel=1e-9)
    assert wasserstein_correlation(3 * codes).normalised == pytest.approx(wasserstein_correlation(codes).normalised)
    assert wasserstein_correlation(3 * codes).score == pytest.approx(9 * wasserstein_correlation(codes).score)


def test_constant_and_dependent_codes():
    codes = codes_with(np.array([[1.0, 0.6], [0.6, 1.0]]))
    # Two of them: their deviations from rounded means are constants, too, and seem to depend on each other.
    dead = np.column_stack([codes, np.full((50, 2), 0.1)])
    assert 0 < dead[:, 3].std() < 1e-16
    for function in BOTH:
        assert function(dead).score == pytest.approx(function(codes).score, abs=1e-12)
        assert function(np.ones((4, 2))).score == 0
        assert function(codes[:, :1]).score == pytest.approx(0, abs=1e-12)
    assert wasserstein_correlation(np.ones((4, 2))).normalised == 0
    twice = np.column_stack([codes, codes[:, 0] - 2 * codes[:, 1]])
    result = gaussian_total_correlation(twice)
    assert result.score == np.inf and result.to_dict()["score"] is None
    assert gaussian_total_correlation(codes[:2]).score == np.inf
    # Two equal codes: 4 - 2 sqrt(2) over 2.
    pair = wasserstein_correlation(codes[:, [0, 0]])
    assert pair.normalised == pytest.approx(2 - np.sqrt(2), rel=1e-7)


@pytest.mark.parametrize("function", BOTH)
def test_bad_input(function):
    with pytest.raises(ValueError, match="at least two samples, got one"):
        function(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="codes: expected finite values, got nan in row 0, column 0"):
        function(np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="non-empty"):
        function(np.zeros((3, 0)))
    with pytest.raises(ValueError, match="code_names: expected 2 names, got 1"):
        function(np.zeros((3, 2)), code_names=["a"])


@pytest.mark.parametrize("function", BOTH)
def test_table_dict_and_plot(function):
    result = function(codes_with(np.array([[4.0, 1.0], [1.0, 1.0]])), code_names=("a", "b"))
    lines = str(result).splitlines()
    assert lines[0].endswith("(50 samples)") and f"{result.score:.4f}" in lines[0]
    assert lines[3].split() == ["a", "1.0000", "0.5000", "4.0000"]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["score"] == result.score
    assert [text.get_text() for text in result.plot().texts] == ["1.00", "0.50", "0.50", "1.00"]
