"""The clustering prior of the decomposition paper."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from ..mixture_of_gaussians import MixtureOfGaussians
from ._base import Prior, cpu_tensor, placed, positive_int, positive_parameter


class MixtureOfGaussiansPrior(Prior):
    """A mixture of K Gaussians with diagonal covariances (decomposition paper, section 6.2: four, of equal weight).

    Args:
        dim: D.
        components: K.
        means: (K, D); None spreads them evenly over a circle of the given radius in the first two dims.
        stds: a number, or (K, D).
        weights: K numbers > 0, which are normalised; None makes them equal.
        radius: of that circle; unused where means are given.
        learn: learn weights (``softmax(logits)``), means and stds (``exp(log_stds)``).
    """

    def __init__(
        self,
        dim: int,
        components: int = 4,
        means: Sequence[Sequence[float]] | torch.Tensor | None = None,
        stds: float | Sequence[Sequence[float]] | torch.Tensor = 0.5,
        weights: Sequence[float] | torch.Tensor | None = None,
        radius: float = 2.0,
        learn: bool = False,
    ) -> None:
        super().__init__(dim)
        self.learn = learn
        positive_int("components", components)
        if means is None:
            means = _circle(components, dim, float(positive_parameter("radius", radius)))
        else:
            means = cpu_tensor(means)
        if means.shape != (components, dim):
            raise ValueError(f"means must have shape (components, dim) = {components, dim}, got {tuple(means.shape)}")
        if not bool(means.isfinite().all()):
            raise ValueError(f"means must be finite, got {means.tolist()}")
        stds = positive_parameter("stds", stds, components, dim)
        weights = positive_parameter("weights", 1.0 if weights is None else weights, components)
        weights = weights / weights.sum()
        if learn:
            self.logits, self.means = nn.Parameter(placed(weights.log())), nn.Parameter(placed(means))
            self.log_stds = nn.Parameter(placed(stds.log()))
        else:
            for name, value in (("fixed_weights", weights), ("means", means), ("fixed_stds", stds)):
                self.register_buffer(name, placed(value))

    def forward(self) -> MixtureOfGaussians:
        if self.learn:
            weights, stds = torch.softmax(self.logits, dim=0), self.log_stds.exp()
        else:
            weights, stds = self.fixed_weights, self.fixed_stds
        return MixtureOfGaussians(weights, self.means, stds, validate_args=False)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, components={self.means.shape[0]}, learn={self.learn}"


def _circle(components: int, dim: int, radius: float) -> torch.Tensor:
    if dim < 2:
        raise ValueError(f"means must be given where dim < 2: there is no circle in {dim} dim")
    angles = [2 * math.pi * k / components for k in range(components)]
    return cpu_tensor([[radius * math.cos(a), radius * math.sin(a)] + [0.0] * (dim - 2) for a in angles])
