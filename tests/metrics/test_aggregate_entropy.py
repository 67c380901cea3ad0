"""Streaming entropies of the aggregate posterior against closed forms, in one chunk and in many."""

import math

import pytest
import torch

from strucfast.metrics import _aggregate_entropy
from strucfast.metrics._aggregate_entropy import aggregate_entropies, sample_aggregate


def gaussian_entropy(variance):
    return 0.5 * math.log(2 * math.pi * math.e * variance)


def test_separate_and_equal_posteriors():
    """K far components add log K to a component's entropy; components that coincide add nothing."""
    generator = torch.Generator().manual_seed(0)
    count, samples = 400, 4000
    far = 100.0 * (torch.arange(count) % 5).double()
    mean = torch.stack([far, torch.zeros(count).double(), torch.full((count,), 3.0).double()], dim=1)
    logvar = torch.tensor([0.0, math.log(4.0), math.log(0.25)]).double().expand(count, 3)
    found = aggregate_entropies(sample_aggregate(mean, logvar, samples, generator), mean, logvar)
    expected = torch.tensor([gaussian_entropy(1.0) + math.log(5), gaussian_entropy(4.0), gaussian_entropy(0.25)])
    # -log q of a Gaussian sample has variance 1/2.
    assert (found - expected).abs().max() < 5 * (0.5 / samples) ** 0.5
    assert found.dtype == torch.float64


def test_many_chunks_give_the_numbers_of_one(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    mean, logvar = torch.randn(57, 3, generator=generator), 0.5 * torch.randn(57, 3, generator=generator)
    z = sample_aggregate(mean, logvar, 41, generator)
    pairs = torch.distributions.Normal(mean.double(), torch.exp(0.5 * logvar.double())).log_prob(z.double()[:, None])
    expected = -(pairs.logsumexp(dim=1) - math.log(57)).mean(dim=0)
    torch.testing.assert_close(aggregate_entropies(z, mean, logvar), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(_aggregate_entropy, "_CHUNK_SAMPLES", 7)
    monkeypatch.setattr(_aggregate_entropy, "_CHUNK_ELEMENTS", 7 * 3 * 10)
    torch.testing.assert_close(aggregate_entropies(z, mean, logvar), expected, rtol=1e-5, atol=1e-5)


def test_samples_are_seeded_and_take_each_component_once():
    mean = torch.arange(20.0).unsqueeze(1)
    logvar = torch.full((20, 1), -60.0)
    once = sample_aggregate(mean, logvar, 20, torch.Generator().manual_seed(3))
    assert once.round().flatten().sort().values.equal(torch.arange(20.0))
    again = sample_aggregate(mean, logvar, 20, torch.Generator().manual_seed(3))
    assert torch.equal(once, again)
    assert sample_aggregate(mean, logvar, 50).shape == (50, 1)


def test_nothing_to_average_is_named():
    with pytest.raises(ValueError, match="at least one row, got 0 and 2"):
        aggregate_entropies(torch.zeros(0, 3), torch.zeros(2, 3), torch.zeros(2, 3))
