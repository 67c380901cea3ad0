"""FactorVAE: the total correlation comes from a discriminator, which an optimizer of its own trains."""

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..losses import (
    LossTerms,
    bernoulli_reconstruction,
    density_ratio_tc,
    discriminator_loss,
    elbo_terms,
    gaussian_kl,
    permute_dims,
)
from ..losses._checks import no_autocast
from ..nn._checks import positive_int
from .base import adam
from .config import AEConfig, set_number
from .vae import VAE

# Optimizer of the discriminator (Kim & Mnih 2018, appendix A).
_LEARNING_RATE, _BETAS = 1e-4, (0.5, 0.9)


@dataclass(frozen=True)
class FactorVAEConfig(AEConfig):
    """A Gaussian encoder, the ELBO, and a discriminator.

    Attributes:
        gamma: weight of the total correlation. discriminator_width, discriminator_layers: its hidden layers.
        discriminator_learning_rate: of its Adam, whose betas are .5 and .9.
    """

    # The best by validation loss (SAE paper, appendix A.2.2).
    gamma: float = 40.0
    discriminator_width: int = 1000
    discriminator_layers: int = 6
    discriminator_learning_rate: float = _LEARNING_RATE

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "gamma", minimum=0.0)
        positive_int("discriminator_width", self.discriminator_width)
        positive_int("discriminator_layers", self.discriminator_layers)
        set_number(self, "discriminator_learning_rate", above=0.0)


class Discriminator(nn.Module):
    """MLP with leaky ReLUs (slope .2) that tells samples of q(z) from permuted ones (Kim & Mnih 2018, appendix A).

    Shapes: z (N,D) -> logits (N,2), column 0 for q(z), column 1 for permuted; float32 also under autocast.
    """

    def __init__(self, latent_dim: int, width: int = 1000, layers: int = 6) -> None:
        super().__init__()
        sizes = (latent_dim, *[width] * layers, 2)
        self.layers = nn.ModuleList(nn.Linear(inp, out) for inp, out in itertools.pairwise(sizes))

    def forward(self, z: torch.Tensor, *, frozen: bool = False) -> torch.Tensor:
        """Logits of codes; ``frozen``: gradient passes to z, not to the parameters."""
        last = len(self.layers) - 1
        # The encoder's gradient is a small difference of logits: bf16 would drown it.
        with no_autocast(z):
            z = z.to(self.layers[0].weight.dtype)
            for number, layer in enumerate(self.layers):
                weight, bias = (p.detach() if frozen else p for p in (layer.weight, layer.bias))
                z = F.linear(z, weight, bias)
                z = F.leaky_relu(z, 0.2) if number < last else z
        return z


class FactorVAE(VAE):
    """FactorVAE (Kim & Mnih 2018, "Disentangling by Factorising", algorithm 2).

    Two optimizers share every step. Optimizer 0 moves encoder, decoder (and prior) along
    ``reconstruction + KL + gamma * TC`` (equation 2), the total correlation as the discriminator sees it on the whole
    batch; the discriminator gets no gradient from it. Optimizer 1 moves the discriminator along its cross entropy
    between the codes of one half of the batch and the permuted codes of the other, disjoint half; the encoder gets no
    gradient from it. Batches are therefore of even size, and at least 4, when the discriminator learns.
    """

    config_type: ClassVar[type[AEConfig]] = FactorVAEConfig

    def __init__(self, name: str, config: FactorVAEConfig) -> None:
        super().__init__(name, config)
        width, layers = config.discriminator_width, config.discriminator_layers
        self.discriminator = Discriminator(config.latent_dim, width, layers)

    def loss(self, x: torch.Tensor, *, generator: torch.Generator | None = None, optimizer_index: int = 0) -> LossTerms:
        """Loss of one optimizer on a batch of images (N,C,H,W) in [0,1].

        Args:
            generator: randomness of codes and permutations.
            optimizer_index: 0 for terms "reconstruction", "kl", "total_correlation"; 1 for "discriminator".

        Raises:
            ValueError: another optimizer; N odd or below 4 for optimizer 1; and what every model refuses.
        """
        if optimizer_index not in (0, 1):
            raise ValueError(
                f"optimizer_index must be 0 (encoder and decoder) or 1 (discriminator), got {optimizer_index}"
            )
        x = self._images(x)
        if optimizer_index == 1:
            return self._discriminator_terms(x, generator)
        mean, logvar = self.posterior(x)
        z = self._reparametrise(mean, logvar, generator)
        return self._objective(bernoulli_reconstruction(self.decode_logits(z), x), z, mean, logvar)

    def optimizers(self, config: Any = None) -> list[torch.optim.Optimizer]:
        """Adam of the autoencoder as ``config`` says, and Adam of the discriminator (1e-4, .5/.9 by default)."""
        own = set(self.discriminator.parameters())
        autoencoder = [parameter for parameter in self.parameters() if parameter not in own]
        rate = self.config.discriminator_learning_rate
        discriminator = adam(self.discriminator.parameters(), learning_rate=rate, betas=_BETAS)
        return [adam(autoencoder, config), discriminator]

    def _objective(
        self, reconstruction: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor
    ) -> LossTerms:
        elbo = elbo_terms(reconstruction, gaussian_kl(mean, logvar))
        total_correlation = density_ratio_tc(self.discriminator(z, frozen=True))
        terms = elbo.terms | {"total_correlation": total_correlation.detach()}
        return LossTerms(elbo.total + self.config.gamma * total_correlation, terms)

    def _discriminator_terms(self, x: torch.Tensor, generator: torch.Generator | None) -> LossTerms:
        count = x.shape[0]
        if count < 4 or count % 2:
            raise ValueError(f"x must hold an even number of images >= 4 for the discriminator's step, got {count}")
        with torch.no_grad():
            z = self._reparametrise(*self.posterior(x), generator)
            other = permute_dims(z[count // 2 :], generator)
        loss = discriminator_loss(self.discriminator(z[: count // 2]), self.discriminator(other))
        return LossTerms(loss, {"discriminator": loss.detach()})
