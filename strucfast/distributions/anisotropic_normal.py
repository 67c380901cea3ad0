"""A normal distribution with its own scale in every dim."""

from typing import Any, ClassVar

import torch
from torch.distributions import Distribution, constraints

from ._random import LOG_2_PI, NO_SHAPE, as_parameters, density_dtype, standard_normal


class AnisotropicNormal(Distribution):
    """N(0, diag(scale^2)), the prior of the decomposition paper that breaks rotational symmetry (section 6.1).

    Args:
        scale: standard deviations > 0, (*batch, D); event shape (D,).

    The KL divergence from and to torch's ``Independent(Normal(...), 1)`` is in closed form.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"scale": constraints.independent(constraints.positive, 1)}
    support = constraints.real_vector
    has_rsample = True
    # what kl_terms asks about groups of dims
    independent_coordinates: ClassVar[bool] = True

    def __init__(self, scale: torch.Tensor, validate_args: bool | None = None) -> None:
        (self.scale,) = as_parameters(scale)
        if self.scale.dim() < 1:
            raise ValueError(f"scale must have shape (..., D), got {tuple(self.scale.shape)}")
        super().__init__(self.scale.shape[:-1], self.scale.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "AnisotropicNormal":
        new = self._get_checked_instance(AnisotropicNormal, _instance)
        new.scale = self.scale.expand(torch.Size(batch_shape) + self.event_shape)
        super(AnisotropicNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> torch.Tensor:
        return torch.zeros_like(self.scale)

    @property
    def mode(self) -> torch.Tensor:
        return self.mean

    @property
    def variance(self) -> torch.Tensor:
        return self.scale**2

    def entropy(self) -> torch.Tensor:
        return (self.scale.log() + 0.5 * (1 + LOG_2_PI)).sum(dim=-1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        dtype = density_dtype(value, self.scale)
        scale = self.scale.to(dtype)
        return -(0.5 * (value.to(dtype) / scale) ** 2 + scale.log() + 0.5 * LOG_2_PI).sum(dim=-1)

    def rsample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.scale * standard_normal(self._extended_shape(sample_shape), self.scale, generator)

    def sample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape, generator)
