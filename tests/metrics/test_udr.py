import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler

from strucfast import metrics

# A full grid: its columns are exactly uncorrelated.
GRID = np.stack(np.unravel_index(np.arange(60), (3, 4, 5)), axis=1).astype(float)


def mixtures(count=3, rows=400):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(rows, 4))
    return [base @ (np.eye(4) + 0.4 * rng.normal(size=(4, 4))) for _ in range(count)]


def by_definition(codes, kind):
    count = len(codes)
    pairwise = np.full((count, count), np.nan)
    for i in range(count):
        for j in range(count):
            if i != j:
                first, second = StandardScaler().fit_transform(codes[i]), StandardScaler().fit_transform(codes[j])
                if kind == "lasso":
                    r = np.abs(Lasso(alpha=0.1).fit(first, second).coef_).T
                else:
                    r = np.abs([[spearmanr(a, b).statistic for b in second.T] for a in first.T])
                pairwise[i, j] = ((r.max(0) ** 2 / r.sum(0)).mean() + (r.max(1) ** 2 / r.sum(1)).mean()) / 2
    return pairwise, np.array([np.median(np.delete(pairwise[:, j], j)) for j in range(count)])


@pytest.mark.parametrize("kind", ["lasso", "spearman"])
def test_the_definition(kind):
    codes = mixtures()
    result = metrics.udr(codes, similarity=kind)
    pairwise, per_model = by_definition(codes, kind)
    np.testing.assert_allclose(result.pairwise, pairwise, rtol=2e-3 if kind == "lasso" else 1e-10)
    np.testing.assert_allclose(result.per_model, per_model, rtol=2e-3 if kind == "lasso" else 1e-10)
    assert result.score == pytest.approx(result.per_model.mean())
    assert np.isnan(result.pairwise.diagonal()).all()


def test_relabelled_codes():
    other = GRID[:, [2, 0, 1]] * [-3.0, 1.0, 0.1] + 5
    # Lasso shrinks the weight of 1 by its alpha.
    assert metrics.udr([GRID, other, GRID]).score == pytest.approx(0.9, abs=1e-6)
    assert metrics.udr([GRID, other, GRID], similarity="spearman").score == pytest.approx(1, abs=1e-12)
    # Ranks do not see a monotone map, nor ties a new order.
    assert metrics.udr([GRID, np.exp(GRID)], similarity="spearman").score == pytest.approx(1, abs=1e-12)


def test_duplicated_codes_share():
    # R is all ones: the largest squared over the sum is 1/2 for each code.
    twice = np.repeat(GRID[:, :1], 2, axis=1)
    assert metrics.udr([twice, twice], similarity="spearman").score == pytest.approx(0.5, abs=1e-12)


def test_dead_codes_and_those_of_small_kl_do_not_count():
    noise = np.random.default_rng(0).normal(size=(60, 2))
    dead = np.column_stack([GRID, np.full(60, 0.1)])
    result = metrics.udr([dead, GRID], similarity="spearman")
    assert result.score == pytest.approx(1, abs=1e-12) and result.informative.tolist() == [3, 3]
    noisy = np.column_stack([GRID, noise])
    without = metrics.udr([noisy, noisy[:, ::-1]], similarity="spearman").score
    kl = [np.array([1, 1, 1, 0.01, 0.0]), torch.tensor([0.0, 0.01, 1, 1, 1])]
    masked = metrics.udr([noisy, noisy[:, ::-1]], similarity="spearman", kl=kl)
    assert masked.score == pytest.approx(1, abs=1e-12) and without < 0.9
    assert masked.informative.tolist() == [3, 3]
    empty = metrics.udr([np.ones((60, 2)), GRID, GRID])
    assert empty.pairwise[0, 1] == empty.pairwise[1, 0] == empty.per_model[0] == 0


def test_models_of_several_widths_torch_and_names():
    result = metrics.udr([torch.from_numpy(GRID), GRID[:, :1].astype(np.float32)], model_names=("seed 0", "seed 1"))
    assert 0 < result.score < 0.9
    lines = str(result).splitlines()
    assert lines[0].startswith("UDR 0.") and "seed 1" in lines[1] and lines[3].startswith("seed 0")
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["pairwise"][0][0] is None
    assert len(result.plot().texts) == 4


def test_bad_input():
    with pytest.raises(ValueError, match="codes: expected arrays of at least two models, got 1"):
        metrics.udr([GRID])
    with pytest.raises(ValueError, match=r"codes\[1\]: expected 60 rows as codes\[0\], got 59"):
        metrics.udr([GRID, GRID[1:]])
    with pytest.raises(ValueError, match=r"codes\[1\]: expected finite values, got nan"):
        metrics.udr([GRID, np.full((60, 2), np.nan)])
    with pytest.raises(ValueError, match="similarity: expected 'lasso' or 'spearman', got 'pearson'"):
        metrics.udr([GRID, GRID], similarity="pearson")
    with pytest.raises(ValueError, match="kl: expected one array for each of the 2 models, got 1"):
        metrics.udr([GRID, GRID], kl=[np.ones(3)])
    with pytest.raises(ValueError, match=r"kl\[1\]: expected finite values of shape \(3,\)"):
        metrics.udr([GRID, GRID], kl=[np.ones(3), np.ones(2)])
    with pytest.raises(ValueError, match=r"codes\[0\]: expected a non-empty array"):
        metrics.udr([GRID[:0], GRID])
