"""Terms of autoencoder objectives: reconstruction, divergences, and the ELBO put together from them."""

from .elbo import LossTerms, elbo_terms, gaussian_kl
from .reconstruction import bernoulli_reconstruction

__all__ = ["LossTerms", "bernoulli_reconstruction", "elbo_terms", "gaussian_kl"]
