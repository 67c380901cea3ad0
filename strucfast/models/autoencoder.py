"""The plain autoencoder: the conventional hourglass with a deterministic code."""

from .backbone import make_decoder, make_encoder
from .base import Autoencoder
from .config import AEConfig


class AE(Autoencoder):
    """Deterministic autoencoder with the hourglass decoder (the SAE paper's baseline "AE")."""

    def __init__(self, name: str, config: AEConfig) -> None:
        super().__init__(name, config)
        self.encoder = make_encoder(config, config.latent_dim)
        self.decoder = make_decoder(config)
