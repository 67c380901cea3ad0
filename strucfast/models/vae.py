"""Variational autoencoders on the hourglass: VAE and beta-VAE."""

from typing import ClassVar

import torch
from torch.distributions import Distribution, Independent, Normal

from ..losses import LossTerms, bernoulli_reconstruction, elbo_terms, gaussian_kl
from .backbone import make_decoder, make_encoder
from .base import Autoencoder
from .config import AEConfig, VAEConfig


class VAE(Autoencoder):
    """VAE (Kingma & Welling 2014) with a diagonal Gaussian posterior and a standard normal prior.

    ``beta`` other than 1 is the beta-VAE (Higgins et al. 2017).
    """

    config_type: ClassVar[type[AEConfig]] = VAEConfig
    has_prior: ClassVar[bool] = True

    def __init__(self, name: str, config: VAEConfig) -> None:
        super().__init__(name, config)
        self.encoder = make_encoder(config, 2 * config.latent_dim)
        self.decoder = make_decoder(config)

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
        """Codes (n,D) from the standard normal prior, on the model's device and in its dtype."""
        own = self.encoder.head[0].weight
        device = generator.device if generator is not None else own.device
        noise = torch.randn((n, self.latent_dim), generator=generator, device=device, dtype=own.dtype)
        return noise.to(own.device)
