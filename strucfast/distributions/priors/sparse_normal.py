"""The sparse prior of the decomposition paper."""

import torch
from torch.distributions import Independent

from ..sparse_normal import SparseNormal
from ._base import Prior, placed, positive_parameter


class SparseNormalPrior(Prior):
    """``prod_d (1 - gamma) N(z_d; 0, 1) + gamma N(z_d; 0, narrow_variance)`` (decomposition paper, section 6.3).

    Args:
        dim: D.
        gamma: weight of the narrow component, in [0, 1].
        narrow_variance: its variance, 0.05 in the paper; the authors' code has the standard deviation 0.05, which is
            ``narrow_variance=0.0025``.
    """

    def __init__(self, dim: int, gamma: float = 0.8, narrow_variance: float = 0.05) -> None:
        super().__init__(dim)
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1], got {gamma}")
        self.register_buffer("gamma", torch.full((dim,), float(gamma)))
        self.register_buffer("narrow_variance", placed(positive_parameter("narrow_variance", narrow_variance, dim)))

    def forward(self) -> Independent:
        base = SparseNormal(self.gamma, self.narrow_variance, validate_args=False)
        return Independent(base, 1, validate_args=False)
