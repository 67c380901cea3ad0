"""Whole models: built by name, saved and loaded as a folder."""

from ..losses import LossTerms
from .autoencoder import AE
from .base import Autoencoder
from .config import AEConfig, SAEConfig, VAEConfig
from .ms_vae import MSVAE, MSVAEConfig
from .pretrained import load
from .registry import build, list
from .sae import SAE, AdaAE
from .vae import VAE

__all__ = [
    "AE",
    "MSVAE",
    "SAE",
    "VAE",
    "AEConfig",
    "AdaAE",
    "Autoencoder",
    "LossTerms",
    "MSVAEConfig",
    "SAEConfig",
    "VAEConfig",
    "build",
    "list",
    "load",
]
