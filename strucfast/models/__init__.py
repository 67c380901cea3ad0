"""Whole models: built by name, saved and loaded as a folder."""

from ..losses import LossTerms
from .annealed_vae import AnnealedVAE, AnnealedVAEConfig, CapacityVAE, CapacityVAEConfig
from .autoencoder import AE
from .base import Autoencoder
from .config import AEConfig, SAEConfig, VAEConfig
from .decomposition import DecompositionConfig, DecompositionVAE
from .dip_vae import DIPVAE, DIPVAEConfig
from .factor_vae import Discriminator, FactorVAE, FactorVAEConfig
from .hfvae import HFVAE, HSICVAE, HFVAEConfig, HSICVAEConfig
from .isa_vae import ISATCVAE, ISAVAE, ISAConfig, ISATCConfig
from .ms_vae import MSVAE, MSVAEConfig
from .pretrained import load
from .registry import build, list
from .sae import SAE, AdaAE
from .tcvae import TCVAE, TCVAEConfig
from .vae import VAE
from .vlae import VLAE, VLAEConfig
from .wae import WAE, InfoVAE, InfoVAEConfig, WAEConfig

__all__ = [
    "AE",
    "DIPVAE",
    "HFVAE",
    "HSICVAE",
    "ISATCVAE",
    "ISAVAE",
    "MSVAE",
    "SAE",
    "TCVAE",
    "VAE",
    "VLAE",
    "WAE",
    "AEConfig",
    "AdaAE",
    "AnnealedVAE",
    "AnnealedVAEConfig",
    "Autoencoder",
    "CapacityVAE",
    "CapacityVAEConfig",
    "DIPVAEConfig",
    "DecompositionConfig",
    "DecompositionVAE",
    "Discriminator",
    "FactorVAE",
    "FactorVAEConfig",
    "HFVAEConfig",
    "HSICVAEConfig",
    "ISAConfig",
    "ISATCConfig",
    "InfoVAE",
    "InfoVAEConfig",
    "LossTerms",
    "MSVAEConfig",
    "SAEConfig",
    "TCVAEConfig",
    "VAEConfig",
    "VLAEConfig",
    "WAEConfig",
    "build",
    "list",
    "load",
]
