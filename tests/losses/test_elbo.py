"""The KL in closed form and the beta-ELBO against torch.distributions and quadrature."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.distributions import Independent, Normal, StudentT, kl_divergence

import strucfast as sf

CASES = json.loads((Path(__file__).parents[1] / "data" / "divergences.json").read_text())["cases"]
GOLDEN = [case for case in CASES if case["kind"] == "kl_diag"]


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


def _posterior(n=7, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean, logvar, noise = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(3))
    return mean + torch.exp(0.5 * logvar) * noise, mean, logvar


@pytest.mark.parametrize("prior", [None, StudentT(4.0, torch.zeros(5).double()), Normal(torch.ones(5).double(), 2.0)])
def test_one_sample_kl_is_the_log_ratio(prior):
    z, mean, logvar = _posterior()
    density = Normal(torch.zeros(5).double(), 1.0) if prior is None else prior
    expected = (Normal(mean, torch.exp(0.5 * logvar)).log_prob(z) - density.log_prob(z)).sum(dim=1)
    found = sf.losses.sample_kl(z, mean, logvar, None if prior is None else Independent(prior, 1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_one_sample_kl_averages_to_the_closed_form():
    _, mean, logvar = _posterior(1)
    mean, logvar = mean.expand(200_000, 5), logvar.expand(200_000, 5)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sampled = sf.losses.sample_kl(mean + torch.exp(0.5 * logvar) * noise, mean, logvar)
    standard_error = sampled.std().item() / 200_000**0.5
    assert sampled.mean().item() == pytest.approx(sf.losses.gaussian_kl(mean, logvar)[0].item(), abs=5 * standard_error)


def test_one_sample_kl_under_autocast_keeps_float32():
    z, mean, logvar = _posterior()
    expected = sf.losses.sample_kl(*(t.bfloat16().double() for t in (z, mean, logvar)))
    with torch.autocast("cpu", torch.bfloat16):
        found = sf.losses.sample_kl(z.bfloat16(), mean.bfloat16(), logvar.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_closed_form_is_taken_where_there_is_one():
    z, mean, logvar = _posterior()
    shifted = Independent(Normal(torch.full((5,), 0.5).double(), 2.0), 1)
    heavy = Independent(StudentT(4.0, torch.zeros(5).double()), 1)
    closed = kl_divergence(Normal(mean, torch.exp(0.5 * logvar)), shifted.base_dist).sum(dim=1)
    sampled = sf.losses.sample_kl(z, mean, logvar, heavy)
    torch.testing.assert_close(sf.losses.prior_kl(z, mean, logvar), sf.losses.gaussian_kl(mean, logvar))
    torch.testing.assert_close(sf.losses.prior_kl(z, mean, logvar, shifted), closed)
    torch.testing.assert_close(sf.losses.prior_kl(z, mean, logvar, shifted, estimate="analytic"), closed)
    torch.testing.assert_close(sf.losses.prior_kl(z, mean, logvar, heavy), sampled)
    found = sf.losses.prior_kl(z, mean, logvar, shifted, estimate="sample")
    torch.testing.assert_close(found, sf.losses.sample_kl(z, mean, logvar, shifted))
    with pytest.raises(NotImplementedError):
        sf.losses.prior_kl(z, mean, logvar, heavy, estimate="analytic")
    with pytest.raises(ValueError, match="estimate must be one of auto, analytic, sample, got 'exact'"):
        sf.losses.prior_kl(z, mean, logvar, estimate="exact")


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden_closed_forms(case):
    inputs, expected = case["inputs"], case["expected"]
    mean, logvar, centre, std = (
        torch.tensor(inputs[name], dtype=torch.float64) for name in ("mu", "logvar", "prior_mean", "prior_std")
    )
    exact = {"rtol": 1e-11, "atol": 1e-13}
    standard = torch.tensor(expected["kl_standard_normal"], dtype=torch.float64)
    torch.testing.assert_close(sf.losses.gaussian_kl(mean, logvar), standard, **exact)
    z, found = mean.new_full(mean.shape, float("nan")), Independent(Normal(centre, std), 1)
    # The sample is not looked at where the KL is closed.
    kl = torch.tensor(expected["kl"], dtype=torch.float64)
    torch.testing.assert_close(sf.losses.prior_kl(z, mean, logvar, found), kl, **exact)
    anisotropic = sf.distributions.AnisotropicNormal(std)
    shifted = sf.losses.prior_kl(z, mean - centre, logvar, anisotropic)
    torch.testing.assert_close(shifted, kl, **exact)


def test_capacity_penalises_the_distance_from_both_sides():
    reconstruction = torch.tensor(10.0)
    for capacity, slope in ((1.5, 50.0), (torch.tensor(2.5), -50.0)):
        kl = torch.tensor([1.0, 3.0], requires_grad=True)
        terms = sf.losses.capacity_terms(reconstruction, kl, gamma=100.0, capacity=capacity)
        assert terms.total.item() == 60.0
        expected = {"reconstruction": 10.0, "kl": 2.0, "capacity": float(capacity)}
        assert {name: value.item() for name, value in terms.terms.items()} == expected
        terms.total.backward()
        assert kl.grad.tolist() == [slope, slope]


def test_linear_schedule():
    for step, expected in ((0, 2.0), (25, 3.0), (100, 6.0), (1000, 6.0)):
        assert sf.losses.linear_schedule(step, 100, 2.0, 6.0) == expected
        assert sf.losses.linear_schedule(torch.tensor(float(step)), 100, 2.0, 6.0).item() == expected
    with pytest.raises(ValueError, match="steps must be > 0, got 0"):
        sf.losses.linear_schedule(1, 0)


def test_bad_samples_and_priors():
    z, mean, logvar = _posterior()
    with pytest.raises(ValueError, match=r"z must have the shape of mean, \(7, 5\), got \(6, 5\)"):
        sf.losses.sample_kl(z[:6], mean, logvar)
    # A forgotten Independent: one log-density per dim.
    with pytest.raises(ValueError, match=r"prior\.log_prob must have shape \(7,\), one per row of z, got \(7, 5\)"):
        sf.losses.sample_kl(z, mean, logvar, Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"mean must have shape \(N, D\) with N >= 1, got \(0, 5\)"):
        sf.losses.gaussian_kl(mean[:0], logvar[:0])


def test_prior_kl_takes_a_prior_module_for_its_distribution():
    mean, logvar = torch.randn(5, 3), torch.randn(5, 3)
    z = mean + torch.exp(0.5 * logvar)
    prior = sf.distributions.priors.build("anisotropic", dim=3, std=[0.5, 1.0, 2.0])
    expected = sf.losses.prior_kl(z, mean, logvar, prior(), estimate="analytic")
    torch.testing.assert_close(sf.losses.prior_kl(z, mean, logvar, prior), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dims", [1, 2])
def test_prior_kl_refuses_a_prior_of_other_dims(dims):
    mean, logvar = torch.randn(5, 3), torch.randn(5, 3)
    # with one dim the closed form would broadcast
    prior = Independent(Normal(torch.zeros(dims), torch.ones(dims)), 1)
    with pytest.raises(ValueError, match=rf"prior must have event shape \(3,\), got \({dims},\)"):
        sf.losses.prior_kl(mean, mean, logvar, prior)
