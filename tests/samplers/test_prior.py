"""Prior sampling: standard normal codes for models with a prior, a clear error for the others."""

import pytest
import torch

import strucfast as sf

TINY = {"image_size": 8, "width": 8, "blocks": 1, "latent_dim": 3}


def test_standard_normal_codes():
    model = sf.models.build("vae", **TINY)
    sampler = sf.samplers.PriorSampler(model)
    z = sampler.sample(20000, torch.Generator().manual_seed(0))
    assert z.shape == (20000, 3) and z.dtype == torch.float32
    assert z.mean(dim=0).abs().max() < 0.04 and (z.std(dim=0) - 1).abs().max() < 0.03
    assert torch.equal(z, sampler.sample(20000, torch.Generator().manual_seed(0)))
    assert model.decode(z[:2]).shape == (2, 3, 8, 8)


def test_no_prior():
    with pytest.raises(ValueError, match=r"model must have a prior, got 'ae'.*HybridSampler"):
        sf.samplers.PriorSampler(sf.models.build("ae", **TINY))
    with pytest.raises(ValueError, match="'ae' has no prior"):
        sf.models.build("ae", **TINY).sample_prior(3)


def test_bad_number():
    sampler = sf.samplers.PriorSampler(sf.models.build("vae", **TINY))
    with pytest.raises(ValueError, match="n must be >= 0, got -2"):
        sampler.sample(-2)
