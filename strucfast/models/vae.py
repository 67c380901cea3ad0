"""Variational autoencoders on the hourglass: VAE and beta-VAE."""

from typing import ClassVar

import torch
from torch import nn
from torch.distributions import Distribution, Independent, Normal

from ..distributions.priors import Prior, StandardNormalPrior
from ..losses import LossTerms, bernoulli_reconstruction, elbo_terms, gaussian_kl
from .backbone import make_decoder, make_encoder
from .base import Autoencoder
from .config import AEConfig, VAEConfig


class VAE(Autoencoder):
    """VAE (Kingma & Welling 2014) with a diagonal Gaussian posterior and a standard normal prior.

    ``beta`` other than 1 is the beta-VAE (Higgins et al. 2017). A subclass may replace the networks
    (:meth:`_make_networks`), the prior (:meth:`_make_prior`) and the objective (:meth:`_objective`).

    Attributes:
        prior: module that returns the prior as a distribution; its parameters, if it has any, learn with the model.
    """

    config_type: ClassVar[type[AEConfig]] = VAEConfig
    has_prior: ClassVar[bool] = True

    def __init__(self, name: str, config: VAEConfig) -> None:
        super().__init__(name, config)
        self.encoder, self.decoder = self._make_networks()
        self.prior = self._make_prior()

    def _make_networks(self) -> tuple[nn.Module, nn.Module]:
        """Encoder to (N,2D), means and log-variances, and decoder of (N,D)."""
        return make_encoder(self.config, 2 * self.latent_dim), make_decoder(self.config)

    def _make_prior(self) -> Prior:
        return StandardNormalPrior(self.latent_dim)

    def encode(self, x: torch.Tensor) -> Distribution:
        """Posterior N(mean, exp(logvar)) of images (N,C,H,W); event shape (D,)."""
        mean, logvar = self.posterior(x)
        return Independent(Normal(mean, torch.exp(0.5 * logvar), validate_args=False), 1, validate_args=False)

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance, (N,D) each, of images (N,C,H,W)."""
        mean, logvar = self._features(x).chunk(2, dim=1)
        return mean, logvar

    def loss(self, x: torch.Tensor, *, generator: torch.Generator | None = None, optimizer_index: int = 0) -> LossTerms:
        """The objective with one reparametrised sample per image; :meth:`_objective` says which."""
        self._check_optimizer_index(optimizer_index)
        x = self._images(x)
        mean, logvar = self.posterior(x)
        z = self._reparametrise(mean, logvar, generator)
        return self._objective(bernoulli_reconstruction(self.decode_logits(z), x), z, mean, logvar)

    def _objective(
        self, reconstruction: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor
    ) -> LossTerms:
        """Negative beta-ELBO with the closed-form KL; terms "reconstruction" and "kl". What a subclass replaces."""
        return elbo_terms(reconstruction, gaussian_kl(mean, logvar), self.config.beta)

    @staticmethod
    def _reparametrise(mean: torch.Tensor, logvar: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + torch.exp(0.5 * logvar) * noise

    def sample_prior(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Codes (n,D) from the prior, on the model's device and in its dtype."""
        return self.prior.sample(n, generator)
