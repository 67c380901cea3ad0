"""The ELBO with its KL decomposed and each part weighted by itself: beta-TCVAE and HFVAE."""

import torch
from torch.distributions import Distribution

from .elbo import LossTerms, elbo_terms, sample_kl
from .kl_terms import KLTerms, kl_terms


def tc_terms(
    reconstruction: torch.Tensor, kl: KLTerms, *, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0
) -> LossTerms:
    """``reconstruction + alpha * MI + beta * TC + gamma * dimwise KL`` (Chen et al. 2018, equation 4).

    Terms: "reconstruction", "index_code_mi", "total_correlation", "dimwise_kl". The three parts sum to the one-sample
    KL whatever the estimator, so alpha = beta = gamma is the beta-VAE.

    Args:
        reconstruction: scalar, already averaged over the batch. kl: of :func:`kl_terms`.
    """
    total = reconstruction + alpha * kl.index_code_mi + beta * kl.total_correlation + gamma * kl.dimwise_kl
    terms = {
        "reconstruction": reconstruction,
        "index_code_mi": kl.index_code_mi,
        "total_correlation": kl.total_correlation,
        "dimwise_kl": kl.dimwise_kl,
    }
    return LossTerms(total, {name: term.detach() for name, term in terms.items()})


def beta_tcvae_terms(
    reconstruction: torch.Tensor,
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    dataset_size: int | None = None,
    estimator: str = "mss",
    prior: Distribution | None = None,
    gather: bool = False,
) -> LossTerms:
    """The beta-TCVAE's objective (Chen et al. 2018, equation 4) from a batch's posteriors and samples.

    Where alpha = beta = gamma the densities of the aggregate posterior cancel; they are not computed then, and the
    terms are "reconstruction" and "kl" (from one sample); else those of :func:`tc_terms`.

    Args:
        z: (B, D), z[i] drawn from posterior i; the other arguments are those of :func:`kl_terms`.
    """
    if alpha == beta == gamma:
        return elbo_terms(reconstruction, sample_kl(z, mean, logvar, prior), beta)
    terms = kl_terms(z, mean, logvar, dataset_size=dataset_size, estimator=estimator, prior=prior, gather=gather)
    return tc_terms(reconstruction, terms, alpha=alpha, beta=beta, gamma=gamma)


def hfvae_terms(
    reconstruction: torch.Tensor,
    elbo_kl: torch.Tensor,
    kl: KLTerms,
    *,
    lambda_mi: float = 0.0,
    lambda_between: float = 0.0,
    lambda_within: float = 0.0,
) -> LossTerms:
    """``L_VAE - lambda_mi * MI + lambda_between * TC(groups) + lambda_within * sum_g TC(g)`` (survey, equation 13).

    The survey writes lambda_1, lambda_2, lambda_2' (Esmaeili et al. 2019). In equation 13 the prior's corrections are
    zero where it factorises over the latents, as N(0, I) does. Terms: "reconstruction", "kl", "index_code_mi",
    "between_groups", "within_groups", "dimwise_kl".

    Args:
        reconstruction: scalar, already averaged over the batch. elbo_kl: (N,) nats per sample, the KL of L_VAE.
        kl: of :func:`kl_terms` with the groups.
    """
    elbo = elbo_terms(reconstruction, elbo_kl)
    total = elbo.total - lambda_mi * kl.index_code_mi
    total = total + lambda_between * kl.between_groups + lambda_within * kl.within_groups
    names = ("index_code_mi", "between_groups", "within_groups", "dimwise_kl")
    return LossTerms(total, elbo.terms | {name: getattr(kl, name).detach() for name in names})
