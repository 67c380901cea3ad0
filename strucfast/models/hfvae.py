"""Groups of latents: HFVAE weighs dependence between and within them, HSIC-VAE penalises dependence between them."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..losses import LossTerms, elbo_terms, gaussian_kl, group_hsic, hfvae_terms, kl_terms
from ..losses._checks import latent_groups
from ..nn._checks import one_of
from ..reference.aggregate import WEIGHTS
from .config import AEConfig, set_number
from .tcvae import known_dataset_size
from .vae import VAE


@dataclass(frozen=True)
class HFVAEConfig(AEConfig):
    """A Gaussian encoder, groups of latents, and the weights of equation 13 of the survey.

    Attributes:
        groups: lists of latent dims that leave none out; None is pairs (0, 1), (2, 3), ...
        lambda_mi, lambda_between, lambda_within: added weights of mutual information (rewarded), of the total
            correlation between the groups and of those within them; the ELBO itself has each once.
        estimator: of the aggregate posterior: "mss" (exact stratified weights), "mws" or "naive" (1/B).
    """

    groups: tuple[tuple[int, ...], ...] | None = None
    lambda_mi: float = 0.0
    lambda_between: float = 3.0
    lambda_within: float = 2.0
    estimator: str = "mss"

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = self.groups
        if groups is None:
            groups = [range(first, min(first + 2, self.latent_dim)) for first in range(0, self.latent_dim, 2)]
        object.__setattr__(self, "groups", latent_groups(groups, self.latent_dim, cover=True))
        for name in ("lambda_mi", "lambda_between", "lambda_within"):
            set_number(self, name, minimum=0.0)
        one_of("estimator", self.estimator, WEIGHTS)


class HFVAE(VAE):
    """HFVAE (Esmaeili et al. 2019, "Structured Disentangled Representations"; survey, eq. 13).

    ``L_VAE - lambda_mi MI + lambda_between TC(groups) + lambda_within sum_g TC(g)``. Each group is one latent variable,
    also for hybrid sampling. "mss" and "mws" need the size of the training set, which :meth:`begin_training` learns.
    """

    config_type: ClassVar[type[AEConfig]] = HFVAEConfig

    @property
    def latent_groups(self) -> list[list[int]]:
        return [list(group) for group in self.config.groups]

    def _objective(
        self, reconstruction: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor
    ) -> LossTerms:
        config = self.config
        terms = kl_terms(
            z,
            mean,
            logvar,
            dataset_size=None if config.estimator == "naive" else known_dataset_size(self),
            estimator=config.estimator,
            groups=config.groups,
            # Validation is not collective.
            gather=self.training,
        )
        return hfvae_terms(
            reconstruction,
            gaussian_kl(mean, logvar),
            terms,
            lambda_mi=config.lambda_mi,
            lambda_between=config.lambda_between,
            lambda_within=config.lambda_within,
        )


@dataclass(frozen=True)
class HSICVAEConfig(AEConfig):
    """A Gaussian encoder, groups of latents, and a penalty on their dependence.

    Attributes:
        groups: at least two disjoint lists of latent dims; None is the two halves of the code.
        hsic_weight: of the sum over pairs of groups of the (biased) HSIC, which is some hundredths where they depend.
        bandwidth: of the Gaussian kernels, per square root of a group's size.
    """

    groups: tuple[tuple[int, ...], ...] | None = None
    hsic_weight: float = 1000.0
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_dim < 2:
            raise ValueError(f"latent_dim must be >= 2 to hold two groups, got {self.latent_dim}")
        half = self.latent_dim // 2
        groups = [range(half), range(half, self.latent_dim)] if self.groups is None else self.groups
        checked = latent_groups(groups, self.latent_dim)
        if len(checked) < 2:
            raise ValueError(f"groups must be at least two, got {len(checked)}")
        object.__setattr__(self, "groups", checked)
        set_number(self, "hsic_weight", minimum=0.0)
        set_number(self, "bandwidth", above=0.0)


class HSICVAE(VAE):
    """HSIC-VAE (Lopez et al. 2018, "Information Constraints on Auto-Encoding Variational Bayes"; survey, eq. 12).

    ``reconstruction + KL + hsic_weight * sum_{G < H} HSIC(z_G, z_H)``. Terms "reconstruction", "kl" and "hsic". Each
    group is one latent variable for hybrid sampling, every dim outside of them another.
    """

    config_type: ClassVar[type[AEConfig]] = HSICVAEConfig

    @property
    def latent_groups(self) -> list[list[int]]:
        grouped = [list(group) for group in self.config.groups]
        taken = {dim for group in grouped for dim in group}
        return grouped + [[dim] for dim in range(self.latent_dim) if dim not in taken]

    def _objective(
        self, reconstruction: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor
    ) -> LossTerms:
        elbo = elbo_terms(reconstruction, gaussian_kl(mean, logvar))
        dependence = group_hsic(z, self.config.groups, bandwidth=self.config.bandwidth)
        terms = elbo.terms | {"hsic": dependence.detach()}
        return LossTerms(elbo.total + self.config.hsic_weight * dependence, terms)
