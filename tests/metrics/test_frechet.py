import json

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from strucfast import metrics


def with_moments(mean, covariance, rows=400, seed=0):
    """Rows whose sample mean and covariance are the given ones exactly."""
    raw = np.random.default_rng(seed).normal(size=(rows, len(mean)))
    raw -= raw.mean(axis=0)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(raw.T)), raw.T).T
    return white @ np.linalg.cholesky(covariance).T + mean


def random_covariance(size, seed):
    root = np.random.default_rng(seed).normal(size=(size, size + 2))
    return root @ root.T / size


def test_equal_and_shifted_features():
    x = np.random.default_rng(0).normal(size=(300, 5))
    assert metrics.frechet_distance(x, x).score == pytest.approx(0, abs=1e-12)
    shifted = metrics.frechet_distance(x, x + np.array([1.0, 2, 0, 0, -2]))
    assert shifted.mean_term == pytest.approx(9) and shifted.covariance_term == pytest.approx(0, abs=1e-12)
    scaled = metrics.frechet_distance(x, 3 * x)
    # Commuting covariances: the squared distance of their roots, here tr((2 S)^2).
    assert scaled.covariance_term == pytest.approx(4 * np.trace(np.cov(x.T)), rel=1e-10)


def test_gaussians_in_closed_form():
    diagonal_x, diagonal_y = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 4.0, 0.25])
    expected = 3.0**2 + (1 - 2) ** 2 + 0 + (3 - 0.5) ** 2
    assert metrics.frechet_from_moments([0, 0, 3], diagonal_x, [0, 0, 0], diagonal_y) == pytest.approx(expected)
    x, y = with_moments(np.array([0.0, 0, 3]), diagonal_x), with_moments(np.zeros(3), diagonal_y, 250, 1)
    result = metrics.frechet_distance(torch.from_numpy(x), y)
    assert result.score == pytest.approx(expected, rel=1e-9)
    assert (result.num_x, result.num_y, result.num_features) == (400, 250, 3)


def test_covariances_that_do_not_commute():
    a, b = random_covariance(7, 0), random_covariance(7, 1)
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b).real)
    assert metrics.frechet_from_moments(np.zeros(7), a, np.zeros(7), b) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_from_moments(np.zeros(7), b, np.zeros(7), a) == pytest.approx(expected, rel=1e-9)


def test_more_features_than_rows():
    # Singular covariances: 6 rows span 5 dims of 40. In that subspace the root is that of small matrices.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 40)), rng.normal(size=(9, 40)) + 0.2
    result = metrics.frechet_distance(x, y)
    cross = (x - x.mean(0)) @ (y - y.mean(0)).T / np.sqrt(5 * 8)
    nuclear = np.linalg.svd(cross, compute_uv=False).sum()
    expected = np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * nuclear
    assert result.covariance_term == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(x, x).score == pytest.approx(0, abs=1e-6)


def test_constant_and_float32_features():
    ones = np.ones((10, 3), np.float32)
    assert metrics.frechet_distance(ones, ones * 3).score == 12
    x = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32) + np.float32(1e5)
    # Moments in float32 would leave nothing of the variance at such a mean.
    assert metrics.frechet_distance(x, x - 1).score == pytest.approx(4, rel=1e-5)


def test_features_of_images():
    class Extractor(torch.nn.Module):
        def forward(self, x):
            assert not self.training and not torch.is_grad_enabled()
            self.dtype = x.dtype
            return x.float().mean(dim=(2, 3))

    images = np.random.default_rng(0).integers(0, 256, (21, 8, 6, 3), dtype=np.uint8)
    extractor = Extractor()
    features = metrics.extract_features(images, extractor, batch_size=8)
    np.testing.assert_allclose(features, images.mean(axis=(1, 2)) / 255, rtol=1e-5)
    assert extractor.training and extractor.dtype == torch.float32
    raw = metrics.extract_features(images, extractor, as_float=False)
    assert extractor.dtype == torch.uint8
    np.testing.assert_allclose(raw, features * 255, rtol=1e-5)
    with pytest.raises(ValueError, match=r"images: expected uint8 \(N, H, W, C\), got float64"):
        metrics.extract_features(images / 255, extractor)
    with pytest.raises(ValueError, match=r"extractor: expected features \(21, F\), got \(21, 3, 8, 6\)"):
        metrics.extract_features(images, lambda x: x)


def test_table_dict_and_plot():
    result = metrics.frechet_distance(np.eye(3), np.eye(3) + 1)
    assert str(result).splitlines()[0] == "Frechet distance 3.0000  (3 and 3 samples, 3 features)"
    assert json.loads(json.dumps(result.to_dict()))["mean_term"] == pytest.approx(3)
    assert len(result.plot().patches) == 2


def test_bad_input():
    good = np.random.default_rng(0).normal(size=(5, 2))
    for x, y, match in [
        (good, good[:, :1], "features_y: expected 2 columns as features_x, got 1"),
        (good[:1], good, "features_x: expected at least two rows, got 1"),
        (good, good * np.nan, "features_y: expected finite values"),
        (good, good[:0], "features_y: expected a non-empty array"),
        (good, good[0], "features_y: expected a non-empty array"),
    ]:
        with pytest.raises(ValueError, match=match):
            metrics.frechet_distance(x, y)
    zero, one = np.zeros(2), np.eye(2)
    for moments, match in [
        ((zero, np.eye(3), zero, one), r"mean_x, covariance_x: expected shapes \(F,\) and \(F, F\)"),
        ((zero, one, np.zeros(3), np.eye(3)), "mean_y: expected 2 features"),
        ((zero, one, zero, [[1, 2], [0, 1]]), "covariance_y: expected a symmetric matrix"),
        ((zero, one, [np.nan, 0], one), "mean_y, covariance_y: expected finite values"),
    ]:
        with pytest.raises(ValueError, match=match):
            metrics.frechet_from_moments(*moments)
