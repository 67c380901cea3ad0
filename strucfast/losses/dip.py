"""Moment matching of the aggregate posterior, as in DIP-VAE I and II (Kumar et al. 2018)."""

from typing import NamedTuple

import torch

from ._checks import loss_dtype, no_autocast, points, posterior


class DIPPenalties(NamedTuple):
    """How far a covariance C is from the identity.

    Attributes:
        off_diagonal: sum_{k != l} C_kl^2. diagonal: sum_k (C_kk - 1)^2. covariance: (D,D), C itself.
    """

    off_diagonal: torch.Tensor
    diagonal: torch.Tensor
    covariance: torch.Tensor


def dip_penalties(mean: torch.Tensor, logvar: torch.Tensor | None = None) -> DIPPenalties:
    """The two penalties of DIP-VAE (Kumar et al. 2018, equations 5 to 7; survey, eq. 11).

    DIP-VAE-I penalises C = Cov_x[mean(x)], DIP-VAE-II the covariance of the aggregate posterior itself, by the law of
    total covariance C = Cov_x[mean(x)] + E_x[diag exp(logvar(x))]. Covariances are the biased ones, over 1/N. The
    variances enter the diagonal alone; public code that adds one scalar to the whole matrix penalises something else.
    Half types are computed in float32, also under autocast.

    Args:
        logvar: log-variances of the posteriors for DIP-VAE-II, None for DIP-VAE-I.

    Shapes: mean and logvar (N,D) -> two scalars and (D,D).

    Raises:
        TypeError: a tensor that is not floating. ValueError: shapes differ or are not (N,D) with N >= 1.
    """
    points("mean", mean)
    if logvar is not None:
        posterior(mean, logvar)
    with no_autocast(mean):
        mean = mean.to(loss_dtype(mean))
        centred = mean - mean.mean(dim=0)
        covariance = centred.T @ centred / mean.shape[0]
        if logvar is not None:
            covariance = covariance + torch.diag(logvar.to(mean.dtype).exp().mean(dim=0))
        variances = covariance.diagonal()
        off_diagonal = (covariance - torch.diag(variances)).square().sum()
        return DIPPenalties(off_diagonal, (variances - 1.0).square().sum(), covariance)


def dip_regularizer(
    mean: torch.Tensor, logvar: torch.Tensor | None = None, *, lambda_od: float, lambda_d: float
) -> torch.Tensor:
    """``lambda_od * sum_{k != l} C_kl^2 + lambda_d * sum_k (C_kk - 1)^2``, see :func:`dip_penalties`.

    Shapes: mean and logvar (N,D) -> scalar.
    """
    penalties = dip_penalties(mean, logvar)
    return lambda_od * penalties.off_diagonal + lambda_d * penalties.diagonal
