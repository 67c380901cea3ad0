"""Whole models: built by name, saved and loaded as a folder."""

from ..losses import LossTerms
from .autoencoder import AE
from .base import Autoencoder
from .config import AEConfig, SAEConfig, VAEConfig
from .pretrained import load
from .registry import build, list
from .sae import SAE, AdaAE
from .vae import VAE

__all__ = [
    "AE",
    "SAE",
    "VAE",
    "AEConfig",
    "AdaAE",
    "Autoencoder",
    "LossTerms",
    "SAEConfig",
    "VAEConfig",
    "build",
    "list",
    "load",
]
