"""Structural autoencoders: SAE-k and its ablation AdaAE-k."""

from typing import ClassVar

from ..nn import StructuralDecoder
from .backbone import Encoder, plan
from .base import Autoencoder
from .config import AEConfig, SAEConfig


class SAE(Autoencoder):
    """Structural autoencoder: each of k latent variables enters the decoder through its own Str-Tfm layer.

    Leeb et al., "Structure by Architecture: Structured Representations without Regularization", section 2.1.
    The objective is the reconstruction alone; independence comes from the architecture.
    """

    config_type: ClassVar[type[AEConfig]] = SAEConfig
    # Whether every transform sees the whole code.
    shared: ClassVar[bool] = False

    def __init__(self, name: str, config: SAEConfig) -> None:
        super().__init__(name, config)
        layout = plan(config)
        self.encoder = Encoder(config, config.latent_dim)
        self.decoder = StructuralDecoder(
            config.latent_dim,
            config.channels,
            transforms=config.transforms,
            width=config.width,
            blocks=layout.decoder_blocks,
            upsample=layout.upsample,
            final_upsample=layout.final_upsample,
            shared=self.shared,
            base_size=layout.base_size,
            hidden=config.hidden,
            activation=config.activation,
            scale_map=config.scale_map,
            num_groups=config.num_groups,
        )

    @property
    def latent_groups(self) -> list[list[int]]:
        return self.decoder.latent_groups


class AdaAE(SAE):
    """The SAE's ablation: the same decoder, but every Str-Tfm layer sees the whole code (SAE paper, section 3.1)."""

    shared = True
