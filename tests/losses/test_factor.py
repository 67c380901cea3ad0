"""FactorVAE's pieces: permuted dims, the density ratio against known densities, the discriminator's loss."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

import strucfast as sf


def _randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_dim_is_shuffled_by_itself():
    z = torch.arange(40.0).view(10, 4)
    shuffled = sf.losses.permute_dims(z, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shuffled.sort(dim=0).values, z)
    order = shuffled.sub(torch.arange(4.0)).div(4)
    assert len({tuple(column.tolist()) for column in order.T}) == 4
    again = sf.losses.permute_dims(z, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled, again) and not torch.equal(shuffled, sf.losses.permute_dims(z))


def test_all_permutations_are_equally_likely():
    generator = torch.Generator().manual_seed(0)
    z, draws = torch.arange(3.0).view(3, 1), 6000
    counts = dict.fromkeys(itertools.permutations((0.0, 1.0, 2.0)), 0)
    for _ in range(draws):
        counts[tuple(sf.losses.permute_dims(z, generator).flatten().tolist())] += 1
    chi_square = sum((count - draws / 6) ** 2 / (draws / 6) for count in counts.values())
    # 99.99% quantile with 5 degrees of freedom
    assert chi_square < 25.7


def test_gradient_follows_the_values():
    z = _randn(5, 3).requires_grad_()
    shuffled = sf.losses.permute_dims(z, torch.Generator().manual_seed(1))
    (shuffled * shuffled.detach()).sum().backward()
    torch.testing.assert_close(z.grad, z.detach())


def test_the_optimal_discriminator_gives_the_total_correlation():
    rho = 0.8
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    joint, marginals = MultivariateNormal(torch.zeros(2).double(), covariance), Normal(torch.zeros(2).double(), 1.0)
    z = _randn(200_000, 2) @ torch.linalg.cholesky(covariance).T
    logits = torch.stack([joint.log_prob(z), marginals.log_prob(z).sum(dim=1)], dim=1)
    assert sf.losses.density_ratio_tc(logits).item() == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.01)


def test_losses_match_the_definition():
    logits, permuted = _randn(6, 2), _randn(4, 2, seed=1)
    true, false = logits.exp(), permuted.exp()
    d_true, d_false = true[:, 0] / true.sum(dim=1), false[:, 0] / false.sum(dim=1)
    found = sf.losses.discriminator_loss(logits, permuted)
    assert found.item() == pytest.approx(-0.5 * (d_true.log().mean() + (1 - d_false).log().mean()).item(), rel=1e-12)
    ratio = sf.losses.density_ratio_tc(logits)
    assert ratio.item() == pytest.approx((d_true / (1 - d_true)).log().mean().item(), rel=1e-12)
    guess = sf.losses.discriminator_loss(torch.zeros(3, 2), torch.zeros(3, 2))
    assert guess.item() == pytest.approx(math.log(2), rel=1e-6)


def test_a_sure_discriminator_is_finite():
    sure = torch.tensor([[300.0, -300.0]], requires_grad=True)
    loss = sf.losses.discriminator_loss(sure, sure)
    assert loss.item() == 300.0 and sf.losses.density_ratio_tc(sure).item() == 600.0
    loss.backward()
    assert torch.isfinite(sure.grad).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"logits must have shape \(N, 2\) with N >= 1, got \(3, 1\)"):
        sf.losses.density_ratio_tc(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"permuted_logits must have shape \(N, 2\)"):
        sf.losses.discriminator_loss(torch.zeros(3, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"z must have shape \(N, D\) with N >= 1, got \(3,\)"):
        sf.losses.permute_dims(torch.zeros(3))
