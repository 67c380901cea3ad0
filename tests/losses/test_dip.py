"""DIP-VAE's penalties against the golden numbers, numpy's covariance, and a sampled aggregate posterior."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import strucfast as sf

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "divergences.json").read_text())["cases"]
DIP = [case for case in GOLDEN if case["kind"] == "dip"]


@pytest.mark.parametrize("case", DIP, ids=lambda case: case["name"])
@pytest.mark.parametrize("variant", ["i", "ii"])
def test_golden(case, variant):
    inputs, expected = case["inputs"], case["expected"][variant]
    mean = torch.tensor(inputs["mu"], dtype=torch.float64, requires_grad=True)
    logvar = torch.tensor(inputs["logvar"], dtype=torch.float64, requires_grad=True)
    arguments = (mean,) if variant == "i" else (mean, logvar)
    weights = {"lambda_od": inputs["lambda_od"], "lambda_d": inputs["lambda_d"]}
    exact = {"rtol": 1e-11, "atol": 1e-13}
    covariance = torch.tensor(expected["cov"], dtype=torch.float64)
    torch.testing.assert_close(sf.losses.dip_penalties(*arguments).covariance, covariance, **exact)
    regularizer = sf.losses.dip_regularizer(*arguments, **weights)
    torch.testing.assert_close(regularizer, torch.tensor(expected["reg"], dtype=torch.float64), **exact)
    regularizer.backward()
    torch.testing.assert_close(mean.grad, torch.tensor(expected["grad_mu"], dtype=torch.float64), **exact)
    if variant == "ii":
        torch.testing.assert_close(logvar.grad, torch.tensor(expected["grad_logvar"], dtype=torch.float64), **exact)


def test_two_is_the_covariance_of_the_aggregate_posterior():
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(9, 3, generator=generator), torch.randn(9, 3, generator=generator)
    noise = torch.randn(40_000, 9, 3, generator=generator, dtype=torch.float64)
    sampled = np.cov((mean + torch.exp(0.5 * logvar) * noise).reshape(-1, 3).numpy().T, bias=True)
    found = sf.losses.dip_penalties(mean, logvar).covariance
    assert np.abs(found.numpy() - sampled).max() < 0.02


def test_whitened_means_cost_nothing():
    x = np.random.default_rng(0).standard_normal((50, 4))
    x -= x.mean(axis=0)
    white = torch.from_numpy(x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / 50)).T)
    penalties = sf.losses.dip_penalties(white)
    assert penalties.off_diagonal.item() < 1e-24 and penalties.diagonal.item() < 1e-24


def test_autocast_computes_in_float32():
    mean = 100 + torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    exact = sf.losses.dip_penalties(mean.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = sf.losses.dip_penalties(mean)
    assert found.off_diagonal.dtype == torch.float32
    torch.testing.assert_close(found.covariance.double(), exact.covariance, rtol=1e-4, atol=1e-4)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"same shape \(N, D\), got \(2, 3\) and \(2, 4\)"):
        sf.losses.dip_penalties(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"mean must have shape \(N, D\) with N >= 1, got \(3,\)"):
        sf.losses.dip_penalties(torch.zeros(3))
