"""A normal prior with its own scale in every dim: given, from the principal components of data, or learnt."""

from collections.abc import Sequence

import torch
from torch import nn

from ..anisotropic_normal import AnisotropicNormal
from ._base import Prior, placed, positive_parameter


class AnisotropicNormalPrior(Prior):
    """N(0, diag(std^2)) (decomposition paper, section 6.1).

    Args:
        dim: D.
        std: standard deviations, a number or D of them.
        learn: learn them with their total variance kept: ``std_d = sqrt(V softmax(logits)_d)``, V = sum of the squares
            of ``std``, from which the logits start (the parametrisation of the authors' code, V = c D).
    """

    def __init__(self, dim: int, std: float | Sequence[float] = 1.0, learn: bool = False) -> None:
        super().__init__(dim)
        self.learn = learn
        std = positive_parameter("std", std, dim)
        if learn:
            self.register_buffer("total_variance", placed((std**2).sum()))
            self.logits = nn.Parameter(placed(2 * std.log()))
        else:
            self.register_buffer("fixed_std", placed(std))

    @property
    def std(self) -> torch.Tensor:
        """Standard deviations of now, (D,)."""
        if self.learn:
            return (self.total_variance * torch.softmax(self.logits, dim=0)).sqrt()
        return self.fixed_std

    @torch.no_grad()
    def initialise_from(self, data: torch.Tensor) -> "AnisotropicNormalPrior":
        """Standard deviations proportional to those of the data's D first principal components, total variance kept.

        Args:
            data: (N, ...), of any dtype; a few thousand samples are enough, the cost grows with the cube of the smaller
                of N and the number of features.

        Returns the prior, changed in place.

        Raises:
            ValueError: the data vary along fewer than D directions.
        """
        flat = data.detach().reshape(data.shape[0], -1).double()
        centred = flat - flat.mean(dim=0)
        gram = centred.T @ centred if centred.shape[1] <= centred.shape[0] else centred @ centred.T
        eigenvalues = torch.linalg.eigvalsh(gram).flip(0)[: self.dim]
        noise = eigenvalues[:1] * gram.shape[0] * torch.finfo(torch.float64).eps
        found = int((eigenvalues > noise).sum())
        if found < self.dim:
            raise ValueError(f"data must vary along at least dim = {self.dim} directions, got {found}")
        share = (eigenvalues / eigenvalues.sum()).to(self.std)
        if self.learn:
            self.logits.copy_(share.log())
        else:
            self.fixed_std.copy_(((self.fixed_std**2).sum() * share).sqrt())
        return self

    def forward(self) -> AnisotropicNormal:
        return AnisotropicNormal(self.std, validate_args=False)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, learn={self.learn}"
