"""The point mass keeps torch.distributions' shapes and refuses what it has not."""

import pytest
import torch

from strucfast.distributions import PointMass


def test_shapes_and_moments():
    location = torch.randn(4, 3, requires_grad=True)
    mass = PointMass(location)
    assert mass.batch_shape == (4,) and mass.event_shape == (3,)
    assert mass.mean is location and torch.equal(mass.mode, location)
    assert torch.equal(mass.variance, torch.zeros(4, 3))
    assert torch.equal(mass.rsample((2,)), location.expand(2, 4, 3))
    assert mass.expand((5, 4)).mean.shape == (5, 4, 3)
    mass.rsample().sum().backward()
    assert torch.equal(location.grad, torch.ones(4, 3))
    assert not mass.sample().requires_grad


def test_no_density():
    mass = PointMass(torch.zeros(2, 3))
    with pytest.raises(NotImplementedError, match="no density"):
        mass.log_prob(torch.zeros(2, 3))
    with pytest.raises(NotImplementedError, match="no density"):
        mass.entropy()


def test_bad_location():
    with pytest.raises(ValueError, match="location must have shape"):
        PointMass(torch.tensor(1.0))
    with pytest.raises(ValueError, match="location"):
        PointMass(torch.tensor([float("nan")]), validate_args=True)
