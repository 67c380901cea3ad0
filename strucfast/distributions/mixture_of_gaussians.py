"""A mixture of Gaussians with diagonal covariances."""

from typing import Any, ClassVar

import torch
from torch.distributions import Distribution, constraints

from ._random import LOG_2_PI, NO_SHAPE, as_parameters, density_dtype, positive_uniform, standard_normal


class MixtureOfGaussians(Distribution):
    """``sum_k w_k N(z; mean_k, diag(std_k^2))``, the clustering prior of the decomposition paper (section 6.2).

    Args:
        weights: (*batch, K), >= 0, summing to 1. A component of weight 0 is left out.
        means: (*batch, K, D).
        stds: > 0, (*batch, K, D), or anything that broadcasts to it, a number too.

    Event shape (D,). Samples pass no gradient to the parameters.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "weights": constraints.simplex,
        "means": constraints.independent(constraints.real, 2),
        "stds": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        weights: torch.Tensor,
        means: torch.Tensor,
        stds: torch.Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        weights, means, stds = as_parameters(weights, means, stds)
        if means.dim() < 2:
            raise ValueError(f"means must have shape (..., K, D), got {tuple(means.shape)}")
        if weights.dim() < 1 or weights.shape[-1] != means.shape[-2]:
            raise ValueError(
                f"weights must have shape (..., K) with the {means.shape[-2]} components of means,"
                f" got {tuple(weights.shape)}"
            )
        try:
            means, stds = torch.broadcast_tensors(means, stds)
            batch_shape = torch.broadcast_shapes(weights.shape[:-1], means.shape[:-2])
        except RuntimeError as error:
            raise ValueError(
                f"weights {tuple(weights.shape)}, means {tuple(means.shape)} and stds {tuple(stds.shape)}"
                " do not broadcast to (..., K), (..., K, D)"
            ) from error
        self.weights = weights.expand(batch_shape + weights.shape[-1:])
        self.means, self.stds = (tensor.expand(batch_shape + means.shape[-2:]) for tensor in (means, stds))
        super().__init__(batch_shape, means.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "MixtureOfGaussians":
        new = self._get_checked_instance(MixtureOfGaussians, _instance)
        batch_shape = torch.Size(batch_shape)
        new.weights = self.weights.expand(batch_shape + self.weights.shape[-1:])
        new.means, new.stds = (tensor.expand(batch_shape + tensor.shape[-2:]) for tensor in (self.means, self.stds))
        super(MixtureOfGaussians, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> torch.Tensor:
        return (self.weights[..., None] * self.means).sum(dim=-2)

    @property
    def mode(self) -> torch.Tensor:
        raise NotImplementedError("the mode of a mixture of normals has no closed form")

    @property
    def variance(self) -> torch.Tensor:
        """Diagonal of the covariance, (*batch, D)."""
        spread = (self.means - self.mean[..., None, :]) ** 2
        return (self.weights[..., None] * (self.stds**2 + spread)).sum(dim=-2)

    def entropy(self) -> torch.Tensor:
        raise NotImplementedError("the entropy of a mixture of normals has no closed form")

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(self._log_components(value), dim=-1)

    def responsibilities(self, value: torch.Tensor) -> torch.Tensor:
        """p(component | value), (*sample, *batch, K)."""
        return torch.softmax(self._log_components(value), dim=-1)

    def sample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        """Samples; a generator of any device makes them repeatable."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            # The first component at which the cumulated weight reaches the draw; one of weight 0 never does so first.
            total = self.weights.cumsum(dim=-1)
            mark = positive_uniform(shape[:-1], self.means, generator) * total[..., -1]
            chosen = (total < mark[..., None]).sum(dim=-1)
            index = chosen[..., None, None].expand(*shape[:-1], 1, shape[-1])
            means, stds = (
                torch.take_along_dim(tensor.expand(shape[:-1] + tensor.shape[-2:]), index, dim=-2).squeeze(-2)
                for tensor in (self.means, self.stds)
            )
            return means + stds * standard_normal(shape, self.means, generator)

    def _log_components(self, value: torch.Tensor) -> torch.Tensor:
        """log of each component's share of the density, (*sample, *batch, K)."""
        if self._validate_args:
            self._validate_sample(value)
        dtype = density_dtype(value, self.means)
        weights, means, stds = (tensor.to(dtype) for tensor in (self.weights, self.means, self.stds))
        reduced = (value.to(dtype)[..., None, :] - means) / stds
        log_density = -(0.5 * (reduced**2 + LOG_2_PI) + stds.log()).sum(dim=-1)
        absent = weights == 0
        return torch.where(absent, -torch.inf, torch.where(absent, 1.0, weights).log() + log_density)
