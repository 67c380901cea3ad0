"""DIP-VAE I and II: the covariance of the codes is pulled towards the identity."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..losses import LossTerms, dip_penalties, elbo_terms, gaussian_kl
from ..nn._checks import one_of
from .config import AEConfig, set_number
from .vae import VAE

VARIANTS = ("i", "ii")


@dataclass(frozen=True)
class DIPVAEConfig(AEConfig):
    """A Gaussian encoder, the ELBO, and two moment penalties.

    Attributes:
        variant: "i", covariance of the posterior means, or "ii", of the aggregate posterior itself.
        lambda_od, lambda_d: weights of the covariance's squared off-diagonal and of its squared diagonal minus 1.
    """

    variant: str = "ii"
    lambda_od: float = 10.0
    lambda_d: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("variant", self.variant, VARIANTS)
        set_number(self, "lambda_od", minimum=0.0)
        set_number(self, "lambda_d", minimum=0.0)


class DIPVAE(VAE):
    """DIP-VAE (Kumar et al. 2018, "Variational Inference of Disentangled Latent Concepts", equations 6 and 7).

    ``reconstruction + KL + lambda_od * sum_{k != l} C_kl^2 + lambda_d * sum_k (C_kk - 1)^2``, C the covariance over the
    batch (survey, eq. 11). The presets have lambda_d = 10 lambda_od for I and lambda_d = lambda_od for II.
    """

    config_type: ClassVar[type[AEConfig]] = DIPVAEConfig

    def _objective(
        self, reconstruction: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor
    ) -> LossTerms:
        config = self.config
        elbo = elbo_terms(reconstruction, gaussian_kl(mean, logvar))
        penalties = dip_penalties(mean, logvar if config.variant == "ii" else None)
        terms = elbo.terms | {
            "covariance_off_diagonal": penalties.off_diagonal.detach(),
            "covariance_diagonal": penalties.diagonal.detach(),
        }
        total = elbo.total + config.lambda_od * penalties.off_diagonal + config.lambda_d * penalties.diagonal
        return LossTerms(total, terms)
