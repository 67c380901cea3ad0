"""Statistics of hybrid sampling: marginals kept, dependence removed between groups and only there."""

import numpy as np
import pytest
import torch

from strucfast.samplers import HybridSampler

GROUPS = [[0, 1], [2], [3, 4]]


def _labelled(count=8, dims=5):
    """Codes whose every value tells its row and dim."""
    return torch.arange(count).float()[:, None] * 10 + torch.arange(dims)


def _rows(samples):
    return ((samples - torch.arange(samples.shape[1])) / 10).long()


def test_every_dim_is_uniform_over_its_own_stored_values_and_independent():
    samples = HybridSampler(_labelled()).sample(40000, torch.Generator().manual_seed(0))
    rows = _rows(samples)
    assert torch.equal(rows * 10 + torch.arange(5), samples.long())
    for dim in range(5):
        counts = torch.bincount(rows[:, dim], minlength=8)
        # Standard deviation of a count of 5000 is 66.
        assert (counts - 5000).abs().max() < 330
    pairs = torch.bincount(rows[:, 0] * 8 + rows[:, 1], minlength=64)
    assert (pairs - 625).abs().max() < 125


def test_a_group_stays_together_and_groups_are_independent():
    rows = _rows(HybridSampler(_labelled(), GROUPS).sample(20000, torch.Generator().manual_seed(0)))
    assert torch.equal(rows[:, 0], rows[:, 1]) and torch.equal(rows[:, 3], rows[:, 4])
    pairs = torch.bincount(rows[:, 0] * 8 + rows[:, 2], minlength=64)
    assert (pairs - 312.5).abs().max() < 90


def test_chosen_groups_alone_are_hybridised():
    sampler = HybridSampler(_labelled(), GROUPS)
    rows = _rows(sampler.sample(20000, torch.Generator().manual_seed(0), hybridise=[1]))
    assert torch.equal(rows[:, 0], rows[:, 3]) and torch.equal(rows[:, 0], rows[:, 1])
    assert (rows[:, 2] == rows[:, 0]).float().mean().item() == pytest.approx(1 / 8, abs=0.015)
    kept = _rows(sampler.sample(20000, torch.Generator().manual_seed(0), hybridise=[0, 2]))
    assert torch.equal(kept[:, 2], rows[:, 0])
    assert (kept[:, 0] == kept[:, 3]).float().mean().item() == pytest.approx(1 / 8, abs=0.015)
    none = sampler.sample(50, torch.Generator().manual_seed(1), hybridise=[])
    assert (none[:, None] == sampler.codes).all(dim=2).any(dim=1).all()


def test_correlation_goes_to_zero_between_dims():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(500, 1, generator=generator)
    codes = torch.cat([first, first + 0.1 * torch.randn(500, 1, generator=generator)], dim=1)
    assert torch.corrcoef(codes.T)[0, 1] > 0.99
    samples = HybridSampler(codes).sample(20000, generator)
    assert abs(torch.corrcoef(samples.T)[0, 1].item()) < 0.03
    torch.testing.assert_close(samples.mean(dim=0), codes.mean(dim=0), atol=0.03, rtol=0)


def test_a_seed_repeats_and_dtype_is_kept():
    sampler = HybridSampler(np.random.default_rng(0).normal(size=(6, 3)))

    def draw(seed):
        return sampler.sample(9, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))
    assert draw(0).dtype == torch.float64 and sampler.sample(0).shape == (0, 3)


def test_store_draws_distinct_vectors_of_the_training_set():
    codes = _labelled(1000, 2)
    stored = HybridSampler.store(codes, generator=torch.Generator().manual_seed(0)).codes
    assert stored.shape == (128, 2) and len(set(stored[:, 0].tolist())) == 128
    assert (stored[:, 1] == stored[:, 0] + 1).all()
    assert HybridSampler.store(codes[:5]).codes.shape == (5, 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: HybridSampler(torch.zeros(3, 2, dtype=torch.long)), TypeError, "codes must be floating point"),
        (lambda: HybridSampler(torch.zeros(0, 2)), ValueError, r"codes must have shape \(N, D\).*got \(0, 2\)"),
        (lambda: HybridSampler(torch.zeros(3)), ValueError, r"got \(3,\)"),
        (lambda: HybridSampler(torch.tensor([[float("nan")]])), ValueError, "codes must be finite"),
        (lambda: HybridSampler(torch.zeros(3, 3), [[0, 1]]), ValueError, "groups must hold every dim of 0..2"),
        (lambda: HybridSampler(torch.zeros(3, 3), [[0, 1], [1, 2]]), ValueError, "exactly once"),
        (lambda: HybridSampler(torch.zeros(3, 2), [[0, 1], []]), ValueError, "exactly once"),
        (lambda: HybridSampler(torch.zeros(3, 2)).sample(-1), ValueError, "n must be >= 0, got -1"),
        (lambda: HybridSampler(torch.zeros(3, 2)).sample(2.0), TypeError, "n must be an int, got float"),
        (lambda: HybridSampler(torch.zeros(3, 2)).sample(2, hybridise=[2]), ValueError, r"0..1, got \[2\]"),
        (lambda: HybridSampler.store(torch.zeros(3, 2), num_stored=0), ValueError, "num_stored must be >= 1, got 0"),
    ],
)
def test_bad_input_names_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()
