"""The evidence lower bound and its beta-weighted form."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LossTerms:
    """A loss to minimise and the terms it was made of.

    Attributes:
        total: scalar with gradient. terms: name -> detached scalar, before any weight.
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]


def gaussian_kl(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) per sample, in nats.

    ``1/2 sum_d [ mean^2 + exp(logvar) - 1 - logvar ]`` (Kingma & Welling 2014, appendix B).
    Half types are computed in float32.

    Shapes: mean and logvar (N,D) -> (N,).

    Raises:
        ValueError: shapes differ or are not (N,D).
    """
    if mean.dim() != 2 or mean.shape != logvar.shape:
        shapes = f"{tuple(mean.shape)} and {tuple(logvar.shape)}"
        raise ValueError(f"mean and logvar must have the same shape (N, D), got {shapes}")
    dtype = torch.promote_types(mean.dtype, torch.float32)
    mean, logvar = mean.to(dtype), logvar.to(dtype)
    # expm1 keeps the digits of exp(logvar) - 1 near the prior, where both are almost equal.
    return 0.5 * (mean * mean + torch.expm1(logvar) - logvar).sum(dim=1)


def elbo_terms(reconstruction: torch.Tensor, kl: torch.Tensor, beta: float = 1.0) -> LossTerms:
    """Negative beta-ELBO ``reconstruction + beta * mean_n kl_n`` (Higgins et al. 2017, equation 4).

    Args:
        reconstruction: scalar, already averaged over the batch. kl: (N,) nats per sample. beta: weight of the KL.
    """
    divergence = kl.mean()
    total = reconstruction + beta * divergence
    return LossTerms(total, {"reconstruction": reconstruction.detach(), "kl": divergence.detach()})
