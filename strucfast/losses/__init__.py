"""Terms of autoencoder objectives: reconstruction, divergences, and the ELBO put together from them."""

from .dip import DIPPenalties, dip_penalties, dip_regularizer
from .divergences import (
    aggregate_divergence,
    aggregate_kl_pq,
    aggregate_kl_qp,
    decomposition_terms,
    group_hsic,
    variable_hsic,
    wae_bandwidths,
)
from .elbo import LossTerms, capacity_terms, elbo_terms, gaussian_kl, linear_schedule, prior_kl, sample_kl
from .factor import density_ratio_tc, discriminator_loss, permute_dims
from .kl_terms import KLTerms, kl_terms
from .reconstruction import (
    bernoulli_reconstruction,
    cross_entropy_reconstruction,
    gaussian_reconstruction,
    laplace_reconstruction,
)
from .tc import beta_tcvae_terms, hfvae_terms, tc_terms

__all__ = [
    "DIPPenalties",
    "KLTerms",
    "LossTerms",
    "aggregate_divergence",
    "aggregate_kl_pq",
    "aggregate_kl_qp",
    "bernoulli_reconstruction",
    "beta_tcvae_terms",
    "capacity_terms",
    "cross_entropy_reconstruction",
    "decomposition_terms",
    "density_ratio_tc",
    "dip_penalties",
    "dip_regularizer",
    "discriminator_loss",
    "elbo_terms",
    "gaussian_kl",
    "gaussian_reconstruction",
    "group_hsic",
    "hfvae_terms",
    "kl_terms",
    "laplace_reconstruction",
    "linear_schedule",
    "permute_dims",
    "prior_kl",
    "sample_kl",
    "tc_terms",
    "variable_hsic",
    "wae_bandwidths",
]
