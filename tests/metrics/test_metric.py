import numpy as np
import pytest
import torch

from strucfast import metrics

GRID = np.stack(np.unravel_index(np.arange(60), (3, 4, 5)), axis=1)


def test_batches_add_up_to_all_rows():
    metric = metrics.Metric("mig", factor_names=("x", "y", "w"))
    codes = GRID + np.random.default_rng(0).normal(size=GRID.shape)
    buffer = np.empty((20, 3))
    for part in range(3):
        # A loop may reuse its buffer.
        buffer[:] = codes[20 * part : 20 * part + 20]
        metric.update(buffer, GRID[20 * part : 20 * part + 20])
    assert len(metric) == 60
    result = metric.compute()
    assert result.score == metrics.mig(codes, GRID).score and result.factor_names == ("x", "y", "w")
    assert metric.compute().score == result.score
    metric.reset()
    assert len(metric) == 0
    with pytest.raises(ValueError, match=r"expected rows from update\(\) before compute\(\)"):
        metric.compute()


def test_functions_and_several_names():
    robust = metrics.Metric(metrics.irs, quantile=1.0)
    robust.update(torch.from_numpy(GRID).float().requires_grad_(), torch.from_numpy(GRID))
    assert robust.compute().score == pytest.approx(1) and robust.compute().quantile == 1
    several = metrics.Metric(("mig", "irs"), seed=2)
    several.update(GRID.astype(float), GRID)
    found = several.compute()
    assert list(found) == ["mig", "irs"] and found.seed == 2
    everything = metrics.Metric("all")
    everything.update(np.tile(GRID, (4, 1)).astype(float), np.tile(GRID, (4, 1)))
    assert set(everything.compute()) == set(metrics.names()) - {"analytic_mig"}


def test_bad_input():
    with pytest.raises(ValueError, match="metrics: expected names out of"):
        metrics.Metric("migg")
    metric = metrics.Metric("mig")
    with pytest.raises(ValueError, match="codes: expected finite values"):
        metric.update(np.full((2, 2), np.nan), np.zeros((2, 1), int))
    with pytest.raises(ValueError, match="factors: expected 2 rows"):
        metric.update(np.zeros((2, 2)), np.zeros((3, 1), int))
    metric.update(np.zeros((2, 2)), np.zeros((2, 1), int))
    with pytest.raises(ValueError, match="codes: expected 2 columns as before, got 3"):
        metric.update(np.zeros((2, 3)), np.zeros((2, 1), int))
    with pytest.raises(ValueError, match="factors: expected 1 columns as before, got 2"):
        metric.update(np.zeros((2, 2)), np.zeros((2, 2), int))
    # What was refused is not kept in part.
    assert len(metric) == 2 and len(metric._codes) == len(metric._factors) == 1
