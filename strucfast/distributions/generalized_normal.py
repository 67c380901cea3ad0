"""The generalised normal distribution: one-dimensional Lp-nested."""

from typing import Any, ClassVar

import torch
from torch.distributions import Distribution, constraints

from ._lp import masked_power
from ._random import LOG_2, NO_SHAPE, as_parameters, density_dtype, log_node_value, signs


class GeneralizedNormal(Distribution):
    """``p / (2 scale Gamma(1/p)) exp(-|(x - loc)/scale|^p)``: p = 1 Laplace, p = 2 normal, p -> infinity uniform.

    The marginal of an Lp-nested distribution whose exponents are all p (ISA-VAE paper, section 3.2), with
    ``scale = s^(1/p)``; scipy's ``gennorm(p, loc, scale)``.

    Args:
        loc: location.
        scale: length scale, > 0. The standard normal is p = 2, scale = sqrt(2).
        p: exponent, > 0.

    The three broadcast to the batch shape; event shape (). The gradient at x = loc is 0, also for p <= 1.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "p": constraints.positive,
    }
    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        loc: torch.Tensor | float,
        scale: torch.Tensor | float,
        p: torch.Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.p = torch.broadcast_tensors(*as_parameters(loc, scale, p))
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "GeneralizedNormal":
        new = self._get_checked_instance(GeneralizedNormal, _instance)
        batch_shape = torch.Size(batch_shape)
        new.loc, new.scale, new.p = (tensor.expand(batch_shape) for tensor in (self.loc, self.scale, self.p))
        super(GeneralizedNormal, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> torch.Tensor:
        return self.loc

    @property
    def mode(self) -> torch.Tensor:
        return self.loc

    @property
    def variance(self) -> torch.Tensor:
        p = self.p.double()
        ratio = (torch.lgamma(3 / p) - torch.lgamma(1 / p)).exp()
        return (self.scale.double() ** 2 * ratio).to(self.scale.dtype)

    def entropy(self) -> torch.Tensor:
        return (1 / self.p.double() - self._log_normaliser()).to(self.scale.dtype)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        dtype = density_dtype(value, self.scale)
        size = ((value.to(dtype) - self.loc.to(dtype)) / self.scale.to(dtype)).abs()
        return self._log_normaliser().to(dtype) - masked_power(size, self.p.to(dtype))

    def cdf(self, value: torch.Tensor) -> torch.Tensor:
        """No gradient to p."""
        if self._validate_args:
            self._validate_sample(value)
        dtype = density_dtype(value, self.scale)
        reduced = (value.to(dtype) - self.loc.to(dtype)) / self.scale.to(dtype)
        p = self.p.detach().to(dtype)
        energy = masked_power(reduced.abs(), p)
        return 0.5 + 0.5 * reduced.sign() * torch.special.gammainc((1 / p).expand_as(energy), energy)

    def icdf(self, value: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("the inverse needs the inverse incomplete gamma function, which torch lacks")

    def rsample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        """Samples differentiable in loc, scale and p; a generator of any device makes them repeatable."""
        shape = self._extended_shape(sample_shape)
        size = log_node_value(1, self.p.expand(shape), generator).exp()
        return self.loc + (self.scale * size * signs(shape, size, generator)).to(self.loc.dtype)

    def sample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def _log_normaliser(self) -> torch.Tensor:
        """In float64: log p + lgamma(1/p) written without cancellation as lgamma(1 + 1/p)."""
        return -self.scale.double().log() - LOG_2 - torch.lgamma(1 + 1 / self.p.double())
