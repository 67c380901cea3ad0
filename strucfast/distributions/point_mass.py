"""The point mass: what a deterministic encoder returns."""

from typing import Any, ClassVar

import torch
from torch.distributions import Distribution, constraints

_NO_SHAPE = torch.Size()


class PointMass(Distribution):
    """All probability on one vector per batch element, so that deterministic and Gaussian encoders look alike.

    Args:
        location: (N,D), the vectors; batch shape (N,), event shape (D,).

    ``mean``, ``mode``, ``sample`` and ``rsample`` are the location, ``variance`` is 0. There is no density:
    ``log_prob`` and ``entropy`` raise NotImplementedError.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"location": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, location: torch.Tensor, validate_args: bool | None = None) -> None:
        if location.dim() < 1:
            raise ValueError(f"location must have shape (..., D), got {tuple(location.shape)}")
        self.location = location
        super().__init__(location.shape[:-1], location.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> torch.Tensor:
        return self.location

    @property
    def mode(self) -> torch.Tensor:
        return self.location

    @property
    def variance(self) -> torch.Tensor:
        return torch.zeros_like(self.location)

    def expand(self, batch_shape, _instance=None) -> "PointMass":
        return PointMass(self.location.expand(torch.Size(batch_shape) + self.event_shape), validate_args=False)

    def rsample(self, sample_shape=_NO_SHAPE) -> torch.Tensor:
        return self.location.expand(self._extended_shape(sample_shape))

    def sample(self, sample_shape=_NO_SHAPE) -> torch.Tensor:
        return self.rsample(sample_shape).detach()

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("a point mass has no density: a deterministic encoder defines no log_prob")

    def entropy(self) -> torch.Tensor:
        raise NotImplementedError("a point mass has no density: a deterministic encoder defines no entropy")
