"""Models whose aggregate posterior is matched to the prior by a maximum mean discrepancy: WAE-MMD and InfoVAE."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..distributions.priors import StandardNormalPrior
from ..losses import LossTerms, bernoulli_reconstruction, elbo_terms, gaussian_kl
from ..losses._checks import loss_dtype, no_autocast
from ..nn._checks import one_of
from ..ops import mmd
from ..reference.pairwise import KERNELS
from .autoencoder import AE
from .config import AEConfig, set_number
from .vae import VAE


@dataclass(frozen=True)
class MMDConfig(AEConfig):
    """The kernel between codes and draws from the prior.

    Attributes:
        kernel: "imq", C/(C + |a - b|^2), or "rbf", exp(-|a - b|^2 / (2 sigma^2)).
        bandwidth: C or sigma; several add up. None is the latent dim (imq: as the SAE paper's code) or its square root
            (rbf). ``strucfast.losses.wae_bandwidths(D)`` gives the constants of the WAE paper's code.
    """

    kernel: str = "imq"
    bandwidth: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("kernel", self.kernel, KERNELS)
        if self.bandwidth is None:
            return
        if not self.bandwidth or not all(0.0 < float(value) < math.inf for value in self.bandwidth):
            raise ValueError(f"bandwidth must hold finite numbers > 0, got {self.bandwidth}")
        object.__setattr__(self, "bandwidth", tuple(float(value) for value in self.bandwidth))

    @property
    def bandwidths(self) -> tuple[float, ...]:
        """The constants in use."""
        if self.bandwidth is not None:
            return self.bandwidth
        return (float(self.latent_dim) if self.kernel == "imq" else math.sqrt(self.latent_dim),)


@dataclass(frozen=True)
class WAEConfig(MMDConfig):
    """A deterministic encoder; ``mmd_weight`` multiplies the discrepancy (10 as the SAE paper's code)."""

    mmd_weight: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "mmd_weight", minimum=0.0)


@dataclass(frozen=True)
class InfoVAEConfig(MMDConfig):
    """A Gaussian encoder and InfoVAE's two weights.

    Attributes:
        alpha: 1 - alpha weights the KL of the posteriors; 0 keeps the VAE's, 1 drops it (the MMD-VAE).
        lambda_mmd: alpha + lambda_mmd - 1 weights the discrepancy, which is a few units at most where a reconstruction
            is thousands of nats.
    """

    alpha: float = 0.0
    lambda_mmd: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "alpha")
        set_number(self, "lambda_mmd")
        if self.alpha > 1.0:
            raise ValueError(f"alpha must be <= 1, else the KL is rewarded, got {self.alpha}")
        if self.alpha + self.lambda_mmd < 1.0:
            raise ValueError(f"lambda_mmd must be >= 1 - alpha = {1 - self.alpha:g}, got {self.lambda_mmd}")


def _discrepancy(z: torch.Tensor, prior_z: torch.Tensor, config: MMDConfig) -> torch.Tensor:
    """Unbiased squared MMD of codes and draws from the prior (survey, eq. 20), float32 also under autocast."""
    with no_autocast(z):
        z = z.to(loss_dtype(z))
        return mmd(z, prior_z.to(z), kernel=config.kernel, bandwidth=config.bandwidths)


class WAE(AE):
    """WAE-MMD (Tolstikhin et al. 2018, "Wasserstein Auto-Encoders", algorithm 2), deterministic encoder.

    ``reconstruction + mmd_weight * MMD(q(z), p(z))`` with as many draws from N(0, I) as codes, and the same
    reconstruction term as all models here. Terms "reconstruction" and "mmd"; a batch holds at least two images.
    """

    config_type: ClassVar[type[AEConfig]] = WAEConfig
    has_prior: ClassVar[bool] = True

    def __init__(self, name: str, config: WAEConfig) -> None:
        super().__init__(name, config)
        self.prior = StandardNormalPrior(config.latent_dim)

    def loss(self, x: torch.Tensor, *, generator: torch.Generator | None = None, optimizer_index: int = 0) -> LossTerms:
        """Loss of a batch of images (N,C,H,W) in [0,1], N >= 2; ``generator``: randomness of the prior's draws."""
        self._check_optimizer_index(optimizer_index)
        x = self._images(x)
        z = self._features(x)
        reconstruction = bernoulli_reconstruction(self.decode_logits(z), x)
        discrepancy = _discrepancy(z, self.prior.sample(z.shape[0], generator), self.config)
        total = reconstruction + self.config.mmd_weight * discrepancy
        return LossTerms(total, {"reconstruction": reconstruction.detach(), "mmd": discrepancy.detach()})

    def sample_prior(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Codes (n,D) from the standard normal, on the model's device and in its dtype."""
        return self.prior.sample(n, generator)


class InfoVAE(VAE):
    """InfoVAE with the MMD (Zhao et al. 2019, "InfoVAE: Balancing Learning and Inference in Variational Autoencoders").

    ``reconstruction + (1 - alpha) KL(q(z|x) || p) + (alpha + lambda_mmd - 1) MMD(q(z), p(z))``; in the survey's
    equation 10 lambda_1 = -alpha and lambda_2 = alpha + lambda_mmd - 1. Terms "reconstruction", "kl" and "mmd"; a batch
    holds at least two images.
    """

    config_type: ClassVar[type[AEConfig]] = InfoVAEConfig

    def loss(self, x: torch.Tensor, *, generator: torch.Generator | None = None, optimizer_index: int = 0) -> LossTerms:
        """Loss of a batch of images (N,C,H,W) in [0,1], N >= 2; ``generator``: randomness of codes and prior draws."""
        self._check_optimizer_index(optimizer_index)
        x = self._images(x)
        mean, logvar = self.posterior(x)
        z = self._reparametrise(mean, logvar, generator)
        config = self.config
        elbo = elbo_terms(
            bernoulli_reconstruction(self.decode_logits(z), x), gaussian_kl(mean, logvar), 1.0 - config.alpha
        )
        discrepancy = _discrepancy(z, self.prior.sample(z.shape[0], generator), config)
        total = elbo.total + (config.alpha + config.lambda_mmd - 1.0) * discrepancy
        return LossTerms(total, elbo.terms | {"mmd": discrepancy.detach()})
