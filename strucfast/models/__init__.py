"""Whole models: built by name, saved and loaded as a folder."""

from ..losses import LossTerms
from .autoencoder import AE
from .base import Autoencoder
from .config import AEConfig, SAEConfig, VAEConfig
from .isa_vae import ISATCVAE, ISAVAE, ISAConfig
from .ms_vae import MSVAE, MSVAEConfig
from .pretrained import load
from .registry import build, list
from .sae import SAE, AdaAE
from .vae import VAE
from .vlae import VLAE, VLAEConfig

__all__ = [
    "AE",
    "ISATCVAE",
    "ISAVAE",
    "MSVAE",
    "SAE",
    "VAE",
    "VLAE",
    "AEConfig",
    "AdaAE",
    "Autoencoder",
    "ISAConfig",
    "LossTerms",
    "MSVAEConfig",
    "SAEConfig",
    "VAEConfig",
    "VLAEConfig",
    "build",
    "list",
    "load",
]
