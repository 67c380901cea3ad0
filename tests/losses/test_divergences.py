"""Divergences of the aggregate posterior from the prior, and HSIC of groups, from their definitions in float64."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, StudentT

import strucfast as sf

B, S, D = 6, 9, 3


def _batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean, logvar, noise = (torch.randn(B, D, generator=generator, dtype=torch.float64) for _ in range(3))
    prior_z = torch.randn(S, D, generator=generator, dtype=torch.float64)
    return mean + torch.exp(0.5 * logvar) * noise, mean, logvar, prior_z


def _log_mixture(z, mean, logvar):
    """log 1/B sum_j N(z | mean_j, exp(logvar_j)), by scalar loops."""
    rows = []
    for point in z.tolist():
        densities = []
        for centre, spread in zip(mean.tolist(), logvar.tolist(), strict=True):
            terms = zip(point, centre, spread, strict=True)
            densities.append(
                math.exp(sum(-0.5 * ((a - m) ** 2 / math.exp(v) + v + math.log(2 * math.pi)) for a, m, v in terms))
            )
        rows.append(math.log(sum(densities) / len(densities)))
    return torch.tensor(rows, dtype=torch.float64)


def _imq(a, b, c):
    return c / (c + sum((s - t) ** 2 for s, t in zip(a, b, strict=True)))


def _mmd(x, y, c):
    """Survey, equation 20, by scalar loops."""
    x, y = x.tolist(), y.tolist()
    n, m = len(x), len(y)
    within_x = sum(_imq(x[i], x[j], c) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(_imq(y[i], y[j], c) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(_imq(a, b, c) for a in x for b in y) / (n * m)


def _hsic(x, y, sigma_x, sigma_y):
    """Survey, equation 21 with all its sums."""
    k, m = (torch.exp(-torch.cdist(a, a).square() / (2 * s * s)) for a, s in ((x, sigma_x), (y, sigma_y)))
    n = len(x)
    crossed = sum(k[i, j] * m[i, q] for i in range(n) for j in range(n) for q in range(n))
    return ((k * m).sum() / n**2 + k.sum() * m.sum() / n**4 - 2 * crossed / n**3).item()


@pytest.mark.parametrize("prior", [None, Independent(StudentT(5.0, torch.zeros(D).double()), 1)])
def test_kl_of_the_prior_from_the_mixture(prior):
    _, mean, logvar, prior_z = _batch()
    density = prior or Independent(Normal(torch.zeros(D).double(), 1.0), 1)
    expected = (density.log_prob(prior_z) - _log_mixture(prior_z, mean, logvar)).mean()
    found = sf.losses.aggregate_kl_pq(prior_z, mean, logvar, prior)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_kl_of_the_mixture_from_the_prior():
    z, mean, logvar, _ = _batch()
    prior = Independent(Normal(torch.zeros(D).double(), 1.0), 1)
    expected = (_log_mixture(z, mean, logvar) - prior.log_prob(z)).mean().item()
    assert sf.losses.aggregate_kl_qp(z, mean, logvar).item() == pytest.approx(expected, rel=1e-12)
    # 1/(N B) in place of 1/B
    mws = sf.losses.aggregate_kl_qp(z, mean, logvar, prior, estimator="mws", dataset_size=100)
    assert mws.item() == pytest.approx(expected - math.log(100), rel=1e-12)
    whole = sf.losses.aggregate_kl_qp(z, mean, logvar, estimator="mss", dataset_size=B)
    assert whole.item() == pytest.approx(expected, rel=1e-12)


def test_divergences_by_name():
    z, mean, logvar, prior_z = _batch()

    def found(name, **options):
        return sf.losses.aggregate_divergence(name, z, mean, logvar, prior_z, **options).item()

    assert found("kl_pq") == sf.losses.aggregate_kl_pq(prior_z, mean, logvar).item()
    assert found("kl_qp") == sf.losses.aggregate_kl_qp(z, mean, logvar).item()
    several = sum(_mmd(z, prior_z, 2 * D * s) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))
    assert found("mmd") == pytest.approx(several, rel=1e-11)
    assert found("mmd", bandwidth=2.5) == pytest.approx(_mmd(z, prior_z, 2.5), rel=1e-11)
    columns = [(z[:, d : d + 1], prior_z[:, d : d + 1]) for d in range(D)]
    expected = sum(_mmd(a, b, 2 * s) for a, b in columns for s in (0.1, 0.2, 0.5, 1, 2, 5))
    assert found("mmd_dimwise") == pytest.approx(expected, rel=1e-11)
    expected = sum(_mmd(a, b, 0.7) for a, b in columns)
    assert found("mmd_dimwise", bandwidth=0.7) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("name", ["kl_pq", "kl_qp", "mmd", "mmd_dimwise"])
def test_divergences_pull_and_stay_in_float32(name):
    z, mean, logvar, prior_z = _batch()
    exact = sf.losses.aggregate_divergence(name, z, mean, logvar, prior_z).item()
    mean, logvar = mean.float().requires_grad_(), logvar.float().requires_grad_()
    noise = (z - mean.double()) * torch.exp(-0.5 * logvar.double())
    with torch.autocast("cpu", torch.bfloat16):
        drawn = mean + torch.exp(0.5 * logvar) * noise.detach().float()
        found = sf.losses.aggregate_divergence(name, drawn, mean, logvar, prior_z.float())
    assert found.dtype == torch.float32 and found.item() == pytest.approx(exact, rel=1e-4, abs=1e-5)
    found.backward()
    assert mean.grad.abs().sum() > 0 and logvar.grad.abs().sum() > 0


def test_decomposition_terms():
    reconstruction, kl = torch.tensor(10.0), torch.tensor([1.0, 3.0], requires_grad=True)
    divergence = torch.tensor(0.5, requires_grad=True)
    terms = sf.losses.decomposition_terms(reconstruction, kl, divergence, alpha=4.0, beta=3.0)
    assert terms.total.item() == 18.0
    assert {name: t.item() for name, t in terms.terms.items()} == {"reconstruction": 10.0, "kl": 2.0, "divergence": 0.5}
    terms.total.backward()
    assert kl.grad.tolist() == [1.5, 1.5] and divergence.grad.item() == 4.0


def test_wae_bandwidths():
    assert sf.losses.wae_bandwidths(8, sigma=2.0, scales=(1.0, 0.5)) == (64.0, 32.0)
    assert len(sf.losses.wae_bandwidths(3)) == 7


def test_hsic_sums_over_pairs_of_groups():
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = [[0, 3], [1], [4, 2]]
    pairs = [(groups[i], groups[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    for width in (1.0, 0.6):
        expected = sum(_hsic(z[:, a], z[:, b], width * len(a) ** 0.5, width * len(b) ** 0.5) for a, b in pairs)
        assert sf.losses.group_hsic(z, groups, bandwidth=width).item() == pytest.approx(expected, rel=1e-10)
    assert sf.losses.group_hsic(z, groups).item() > 0
    unbiased = sum(
        sf.ops.hsic(z[:, a], z[:, b], bandwidth_x=len(a) ** 0.5, bandwidth_y=len(b) ** 0.5, unbiased=True)
        for a, b in pairs
    )
    assert sf.losses.group_hsic(z, groups, unbiased=True).item() == pytest.approx(unbiased.item(), rel=1e-12)


def test_hsic_with_a_given_variable():
    z = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    expected = _hsic(z, labels.double().unsqueeze(1), 2.0, 0.5)
    found = sf.losses.variable_hsic(z, labels, bandwidth_variable=0.5)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    assert sf.losses.variable_hsic(z, torch.ones(8)).item() == pytest.approx(0.0, abs=1e-15)


def test_bad_input():
    z, mean, logvar, prior_z = _batch()
    divergence = sf.losses.aggregate_divergence
    with pytest.raises(ValueError, match="divergence must be one of kl_pq, kl_qp, mmd, mmd_dimwise, got 'kl'"):
        divergence("kl", z, mean, logvar)
    with pytest.raises(ValueError, match="prior_z must be given for the divergence 'mmd', got None"):
        divergence("mmd", z, mean, logvar)
    with pytest.raises(ValueError, match=r"prior_z must have shape \(N, 3\) with N >= 1, got \(9, 2\)"):
        divergence("kl_pq", z, mean, logvar, prior_z[:, :2])
    for arguments in ((prior_z, mean, logvar), (z, mean, logvar)):
        kl = sf.losses.aggregate_kl_pq if arguments[0] is prior_z else sf.losses.aggregate_kl_qp
        with pytest.raises(ValueError, match=r"prior\.log_prob must have shape .*, one per row of z"):
            kl(*arguments, Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="groups must be at least two, got 1"):
        sf.losses.group_hsic(z, [[0, 1]])
    with pytest.raises(ValueError, match="groups must not overlap, got latent dim 1 twice"):
        sf.losses.group_hsic(z, [[0, 1], [1, 2]])
    with pytest.raises(ValueError, match=r"groups\[1\] must hold latent dims from 0 to 2, got 3"):
        sf.losses.group_hsic(z, [[0], [3]])
    with pytest.raises(ValueError, match=r"groups\[0\] must hold at least one latent dim"):
        sf.losses.group_hsic(z, [[], [1]])
    with pytest.raises(ValueError, match="variable must have the 6 rows of z, got 5"):
        sf.losses.variable_hsic(z, torch.zeros(5))
    with pytest.raises(ValueError, match="sigma must be finite and > 0, got 0"):
        sf.losses.wae_bandwidths(3, sigma=0)


def test_kl_pq_passes_a_learnt_prior_a_gradient_through_its_draws_alone():
    _, mean, logvar, _ = _batch()
    prior = sf.distributions.priors.build("mixture", dim=D, learn=True).double()
    fixed = prior.sample(S, torch.Generator().manual_seed(0))
    mean.requires_grad_()
    loss = sf.losses.aggregate_kl_pq(fixed, mean, logvar, prior())
    loss.backward()
    # the mean of grad log p over draws from p is 0: what a batch has of it is noise
    assert all(parameter.grad is None for parameter in prior.parameters())
    assert mean.grad.abs().sum() > 0
    wide = sf.distributions.priors.build("anisotropic", dim=D, learn=True).double()
    sf.losses.aggregate_kl_pq(wide().rsample((S,)), mean, logvar, wide).backward()
    assert wide.logits.grad.abs().sum() > 0


def test_groups_hold_ints():
    z, *_ = _batch()
    with pytest.raises(TypeError, match=r"groups must be lists of ints, got \[\[0.5, 1\], \[2\]\]"):
        sf.losses.group_hsic(z, [[0.5, 1], [2]])
