"""The weighted parts of the KL against densities of the aggregate posterior that are written out."""

import pytest
import torch
from torch.distributions import Independent, Normal, StudentT

import strucfast as sf

N = 50
RECONSTRUCTION = torch.tensor(10.0, dtype=torch.float64)


def _batch(batch=5, dims=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean, logvar, noise = (torch.randn(batch, dims, generator=generator, dtype=torch.float64) for _ in range(3))
    return mean + torch.exp(0.5 * logvar) * noise, mean, logvar


def _parts(z, mean, logvar, groups, log_prior):
    """MI, TC, dimension-wise KL and both group terms under the exact stratified weights."""
    batch = len(z)
    density = Normal(mean, torch.exp(0.5 * logvar)).log_prob(z.unsqueeze(1)).exp()
    weight = torch.full((batch, batch), (N - 1) / (N * (batch - 1)), dtype=torch.float64)
    weight.fill_diagonal_(1 / N)

    def log_q(dims):
        return (weight * density[:, :, list(dims)].prod(dim=2)).sum(dim=1).log()

    own = density.prod(dim=2).diagonal().log()
    joint, marginal = log_q(range(z.shape[1])), sum(log_q([dim]) for dim in range(z.shape[1]))
    grouped = sum(log_q(group) for group in groups)
    parts = (own - joint, joint - marginal, marginal - log_prior, joint - grouped, grouped - marginal)
    return [part.mean().item() for part in parts]


def _standard(z):
    return Normal(0.0, 1.0).log_prob(z).sum(dim=1)


@pytest.mark.parametrize("weights", [(1.0, 4.0, 1.0), (0.5, 2.0, 3.0), (2.0, 2.0, 0.0)])
@pytest.mark.parametrize("heavy", [False, True])
def test_beta_tcvae_weighs_the_three_parts(weights, heavy):
    z, mean, logvar = _batch()
    prior = Independent(StudentT(3.0, torch.zeros(4).double()), 1) if heavy else None
    log_prior = prior.log_prob(z) if heavy else _standard(z)
    information, correlation, dimwise, *_ = _parts(z, mean, logvar, [], log_prior)
    alpha, beta, gamma = weights
    terms = sf.losses.beta_tcvae_terms(
        RECONSTRUCTION, z, mean, logvar, alpha=alpha, beta=beta, gamma=gamma, dataset_size=N, prior=prior
    )
    expected = 10.0 + alpha * information + beta * correlation + gamma * dimwise
    assert terms.total.item() == pytest.approx(expected, rel=1e-12)
    values = {name: value.item() for name, value in terms.terms.items()}
    parts = {"index_code_mi": information, "total_correlation": correlation, "dimwise_kl": dimwise}
    assert values == pytest.approx({"reconstruction": 10.0, **parts}, rel=1e-11)
    assert not any(value.requires_grad for value in terms.terms.values())


def test_equal_weights_need_no_densities(monkeypatch):
    z, mean, logvar = _batch()
    whole = sf.losses.beta_tcvae_terms(
        RECONSTRUCTION, z, mean, logvar, alpha=3.0, beta=3.0, gamma=3.0 + 1e-13, dataset_size=N
    )
    monkeypatch.setattr(sf.losses.tc, "kl_terms", None)
    short = sf.losses.beta_tcvae_terms(RECONSTRUCTION, z, mean, logvar, alpha=3.0, beta=3.0, gamma=3.0)
    assert short.total.item() == pytest.approx(whole.total.item(), rel=1e-11)
    assert set(short.terms) == {"reconstruction", "kl"}
    expected = (Normal(mean, torch.exp(0.5 * logvar)).log_prob(z).sum(dim=1) - _standard(z)).mean()
    assert short.terms["kl"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_hfvae_weighs_groups():
    z, mean, logvar = _batch()
    groups = [[0, 2], [1, 3]]
    information, _, dimwise, between, within = _parts(z, mean, logvar, groups, _standard(z))
    parts = sf.losses.kl_terms(z, mean, logvar, dataset_size=N, groups=groups)
    kl = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    terms = sf.losses.hfvae_terms(RECONSTRUCTION, kl, parts, lambda_mi=0.5, lambda_between=3.0, lambda_within=2.0)
    expected = 13.0 - 0.5 * information + 3 * between + 2 * within
    assert terms.total.item() == pytest.approx(expected, rel=1e-12)
    named = {"index_code_mi": information, "between_groups": between, "within_groups": within, "dimwise_kl": dimwise}
    values = {name: value.item() for name, value in terms.terms.items()}
    assert values == pytest.approx({"reconstruction": 10.0, "kl": 3.0, **named}, rel=1e-11)
    assert sf.losses.hfvae_terms(RECONSTRUCTION, kl, parts).total.item() == 13.0


def test_gradient_is_that_of_the_written_out_objective():
    z, mean, logvar = (t.requires_grad_() for t in _batch())
    total = sf.losses.beta_tcvae_terms(RECONSTRUCTION, z, mean, logvar, beta=4.0, dataset_size=N).total
    gradients = torch.autograd.grad(total, (z, mean, logvar))
    step = 1e-6
    for index, gradient in enumerate(gradients):
        direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        values = []
        for sign in (1, -1):
            moved = [t.detach().clone() for t in (z, mean, logvar)]
            moved[index] += sign * step * direction
            information, correlation, dimwise, *_ = _parts(*moved, [], _standard(moved[0]))
            values.append(information + 4 * correlation + dimwise)
        slope = (values[0] - values[1]) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6)
