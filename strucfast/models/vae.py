"""Variational autoencoders on the hourglass: VAE and beta-VAE."""

from typing import ClassVar

import torch
from torch.distributions import Distribution, Independent, Normal

from ..losses import LossTerms, bernoulli_reconstruction, elbo_terms, gaussian_kl
from .backbone import Encoder, HourglassDecoder
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
        self.encoder = Encoder(config, 2 * config.latent_dim)
        self.decoder = HourglassDecoder(config)

    def encode(self, x: torch.Tensor) -> Distribution:
        """Posterior N(mean, exp(logvar)) of images (N,C,H,W); event shape (D,)."""
        mean, logvar = self._features(x).chunk(2, dim=1)
        return Independent(Normal(mean, torch.exp(0.5 * logvar), validate_args=False), 1, validate_args=False)

    def loss(self, x: torch.Tensor, *, generator: torch.Generator | None = None, optimizer_index: int = 0) -> LossTerms:
        """Negative beta-ELBO with one reparametrised sample and the closed-form KL; terms "reconstruction" and "kl"."""
        self._check_optimizer_index(optimizer_index)
        x = self._images(x)
        mean, logvar = self._features(x).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        logits = self.decode_logits(mean + torch.exp(0.5 * logvar) * noise)
        return elbo_terms(bernoulli_reconstruction(logits, x), gaussian_kl(mean, logvar), self.config.beta)

    def sample_prior(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Codes (n,D) from the standard normal prior, on the model's device and in its dtype."""
        own = self.encoder.head[0].weight
        device = generator.device if generator is not None else own.device
        noise = torch.randn((n, self.latent_dim), generator=generator, device=device, dtype=own.dtype)
        return noise.to(own.device)
