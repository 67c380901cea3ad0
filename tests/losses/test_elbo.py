"""The KL in closed form and the beta-ELBO against torch.distributions and quadrature."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import strucfast as sf


def test_kl_matches_torch_distributions():
    torch.manual_seed(0)
    mean, logvar = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(sf.losses.gaussian_kl(mean, logvar), expected, rtol=1e-12, atol=1e-12)


def test_kl_matches_numerical_integration():
    mean, logvar = 0.7, -0.9
    z = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    posterior = Normal(torch.tensor(mean, dtype=torch.float64), math.exp(0.5 * logvar))
    log_ratio = posterior.log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    expected = torch.trapezoid(posterior.log_prob(z).exp() * log_ratio, z).item()
    exact = {"dtype": torch.float64}
    found = sf.losses.gaussian_kl(torch.tensor([[mean]], **exact), torch.tensor([[logvar]], **exact))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_kl_is_zero_at_the_prior_and_exact_beside_it():
    assert sf.losses.gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0.0, 0.0]
    mean = torch.full((1, 1), 1e-3)
    assert sf.losses.gaussian_kl(mean, torch.zeros(1, 1)).item() == pytest.approx(5e-7, rel=1e-6)


def test_half_types_are_computed_in_float32():
    mean = torch.full((1, 4), 0.3).bfloat16()
    found = sf.losses.gaussian_kl(mean, torch.zeros(1, 4).bfloat16())
    assert found.dtype == torch.float32 and found.item() == pytest.approx(2 * mean.float()[0, 0].item() ** 2, rel=1e-6)


def test_elbo_weights_the_kl_and_reports_it_unweighted():
    reconstruction = torch.tensor(10.0, requires_grad=True)
    kl = torch.tensor([1.0, 3.0], requires_grad=True)
    terms = sf.losses.elbo_terms(reconstruction, kl, beta=4.0)
    assert terms.total.item() == 18.0
    assert {name: value.item() for name, value in terms.terms.items()} == {"reconstruction": 10.0, "kl": 2.0}
    assert not any(value.requires_grad for value in terms.terms.values())
    terms.total.backward()
    assert kl.grad.tolist() == [2.0, 2.0]


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"same shape \(N, D\), got \(2, 3\) and \(2, 4\)"):
        sf.losses.gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 4))
