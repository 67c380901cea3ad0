"""VAEs whose weight on the KL changes while they train: KL annealing, and a capacity that grows."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..losses import LossTerms, capacity_terms, elbo_terms, gaussian_kl, linear_schedule
from ..nn._checks import positive_int
from .config import AEConfig, VAEConfig, set_number
from .vae import VAE


@dataclass(frozen=True)
class AnnealedVAEConfig(VAEConfig):
    """``beta`` is reached linearly from ``beta_start`` over ``anneal_steps`` training steps."""

    beta_start: float = 0.0
    anneal_steps: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "beta_start", minimum=0.0)
        positive_int("anneal_steps", self.anneal_steps)


@dataclass(frozen=True)
class CapacityVAEConfig(AEConfig):
    """The KL is held at a capacity.

    Attributes:
        gamma: weight of the distance. capacity_start, capacity_end: nats at step 0 and from capacity_steps on.
    """

    gamma: float = 1000.0
    capacity_start: float = 0.0
    capacity_end: float = 25.0
    capacity_steps: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "capacity_start", "capacity_end"):
            set_number(self, name, minimum=0.0)
        positive_int("capacity_steps", self.capacity_steps)


class AnnealedVAE(VAE):
    """beta-VAE whose beta grows linearly at the start (KL annealing, Bowman et al. 2016, section 3.1).

    In evaluation mode the final beta counts, so that validation losses of all steps can be compared.
    """

    config_type: ClassVar[type[AEConfig]] = AnnealedVAEConfig

    def _objective(
        self, reconstruction: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor
    ) -> LossTerms:
        config = self.config
        beta = config.beta
        if self.training:
            beta = linear_schedule(self.training_step, config.anneal_steps, config.beta_start, config.beta)
        return elbo_terms(reconstruction, gaussian_kl(mean, logvar), beta)


class CapacityVAE(VAE):
    """``reconstruction + gamma * | KL - C |``, C growing linearly (Burgess et al. 2018, equation 8 and section 5).

    The paper's gamma is 1000 and its C goes from 0 to 25 nats in 100,000 steps (dSprites). In evaluation mode the final
    C counts, so that validation losses of all steps can be compared.
    """

    config_type: ClassVar[type[AEConfig]] = CapacityVAEConfig

    def _objective(
        self, reconstruction: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor
    ) -> LossTerms:
        config = self.config
        capacity = config.capacity_end
        if self.training:
            capacity = linear_schedule(
                self.training_step, config.capacity_steps, config.capacity_start, config.capacity_end
            )
        return capacity_terms(reconstruction, gaussian_kl(mean, logvar), gamma=config.gamma, capacity=capacity)
