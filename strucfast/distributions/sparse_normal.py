"""The sparse prior of the decomposition paper."""

from typing import Any, ClassVar

import torch
from torch.distributions import Distribution, constraints

from ._random import LOG_2_PI, NO_SHAPE, as_parameters, density_dtype, positive_uniform, standard_normal


class SparseNormal(Distribution):
    """``(1 - gamma) N(x; 0, 1) + gamma N(x; 0, narrow_variance)``: on or off (decomposition paper, section 6.3).

    Args:
        gamma: weight of the narrow component, in [0, 1]; 0.8 in the paper.
        narrow_variance: its variance > 0. The paper has 0.05; the authors' code uses 0.05 as its standard deviation,
            which is ``narrow_variance=0.05**2``.

    Both broadcast to the batch shape; event shape (). A component of weight 0 is left out, of the value and of the
    gradient. Samples pass no gradient to the parameters.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "gamma": constraints.unit_interval,
        "narrow_variance": constraints.positive,
    }
    support = constraints.real
    has_rsample = False

    def __init__(
        self,
        gamma: torch.Tensor | float = 0.8,
        narrow_variance: torch.Tensor | float = 0.05,
        validate_args: bool | None = None,
    ) -> None:
        self.gamma, self.narrow_variance = torch.broadcast_tensors(*as_parameters(gamma, narrow_variance))
        super().__init__(self.gamma.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "SparseNormal":
        new = self._get_checked_instance(SparseNormal, _instance)
        batch_shape = torch.Size(batch_shape)
        new.gamma, new.narrow_variance = self.gamma.expand(batch_shape), self.narrow_variance.expand(batch_shape)
        super(SparseNormal, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> torch.Tensor:
        return torch.zeros_like(self.gamma)

    @property
    def mode(self) -> torch.Tensor:
        return self.mean

    @property
    def variance(self) -> torch.Tensor:
        return 1 - self.gamma + self.gamma * self.narrow_variance

    def entropy(self) -> torch.Tensor:
        raise NotImplementedError("the entropy of a mixture of normals has no closed form")

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        dtype = density_dtype(value, self.gamma)
        value, gamma, variance = value.to(dtype), self.gamma.to(dtype), self.narrow_variance.to(dtype)
        wide = _weighted(1 - gamma, -0.5 * (value**2 + LOG_2_PI))
        narrow = _weighted(gamma, -0.5 * (value**2 / variance + variance.log() + LOG_2_PI))
        return torch.logsumexp(torch.stack(torch.broadcast_tensors(wide, narrow)), dim=0)

    def cdf(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        wide = torch.special.ndtr(value)
        return wide + self.gamma * (torch.special.ndtr(value / self.narrow_variance.sqrt()) - wide)

    def sample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        """Samples; a generator of any device makes them repeatable."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            # uniform on (0,1]: never narrow at gamma = 0, always at 1
            narrow = positive_uniform(shape, self.gamma, generator) <= self.gamma
            scale = torch.where(narrow, self.narrow_variance.sqrt(), 1.0)
            return scale * standard_normal(shape, self.gamma, generator)


def _weighted(weight: torch.Tensor, log_density: torch.Tensor) -> torch.Tensor:
    absent = weight == 0
    return torch.where(absent, -torch.inf, torch.where(absent, 1.0, weight).log() + log_density)
