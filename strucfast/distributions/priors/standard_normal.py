"""The standard normal prior of the VAE."""

import torch
from torch.distributions import Independent, Normal

from ._base import Prior


class StandardNormalPrior(Prior):
    """N(0, I) over codes of ``dim`` dims."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        # Not saved: constants, here to follow the module's device and dtype.
        self.register_buffer("loc", torch.zeros(dim), persistent=False)
        self.register_buffer("scale", torch.ones(dim), persistent=False)

    def forward(self) -> Independent:
        return Independent(Normal(self.loc, self.scale, validate_args=False), 1, validate_args=False)
