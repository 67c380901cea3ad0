"""Models by name."""

import builtins
import difflib
import re
from typing import Any

from .annealed_vae import AnnealedVAE, CapacityVAE
from .autoencoder import AE
from .base import Autoencoder
from .config import AEConfig, from_dict
from .decomposition import DecompositionVAE
from .dip_vae import DIPVAE
from .factor_vae import FactorVAE
from .hfvae import HFVAE, HSICVAE
from .isa_vae import ISATCVAE, ISAVAE
from .ms_vae import MSVAE
from .sae import SAE, AdaAE
from .tcvae import TCVAE
from .vae import VAE
from .vlae import VLAE
from .wae import WAE, InfoVAE

# Family name -> class and what its preset fixes.
_PLAIN: dict[str, tuple[type[Autoencoder], dict[str, Any]]] = {
    "ae": (AE, {}),
    "vae": (VAE, {"beta": 1.0}),
    # The best by validation loss (SAE paper, appendix A.2.2).
    "beta-vae": (VAE, {"beta": 2.0}),
    "annealed-vae": (AnnealedVAE, {}),
    "capacity-vae": (CapacityVAE, {}),
    # As beta-vae.
    "beta-tcvae": (TCVAE, {"beta": 4.0}),
    "factor-vae": (FactorVAE, {"gamma": 40.0}),
    "dip-vae-i": (DIPVAE, {"variant": "i", "lambda_d": 100.0}),
    "dip-vae-ii": (DIPVAE, {"variant": "ii", "lambda_d": 10.0}),
    "wae-mmd": (WAE, {}),
    "info-vae": (InfoVAE, {}),
    "hfvae": (HFVAE, {}),
    "hsic-vae": (HSICVAE, {}),
    "ms-vae": (MSVAE, {"latent_dim": 10}),
    # dSprites in the ISA-VAE paper, appendices A.3 and A.4; beta = 3 is that of its ISA-TCVAE figures.
    "isa-vae": (ISAVAE, {"backbone": "mlp", "latent_dim": 20}),
    "isa-vae-learnt": (ISAVAE, {"backbone": "mlp", "latent_dim": 20, "learn_p": True}),
    "isa-tcvae": (ISATCVAE, {"backbone": "mlp", "latent_dim": 20}),
    "isa-tcvae-learnt": (ISATCVAE, {"backbone": "mlp", "latent_dim": 20, "learn_p": True}),
    # The dSprites prior study of the decomposition paper, section 6.1.
    "decomposition": (DecompositionVAE, {"latent_dim": 10}),
}
# Family name -> class and the field that the number after the dash gives.
_NUMBERED: dict[str, tuple[type[Autoencoder], str]] = {
    "sae": (SAE, "transforms"),
    "adaae": (AdaAE, "transforms"),
    "vlae": (VLAE, "rungs"),
}
_NUMBERS = (2, 3, 4, 6, 12, 16)


def list() -> builtins.list[str]:
    """Names of the presets; numbered families such as ``sae-k`` are built for every other k that fits, too."""
    return [*_PLAIN, *(f"{family}-{k}" for family in _NUMBERED for k in _NUMBERS)]


def family(name: str) -> tuple[type[Autoencoder], dict[str, Any]]:
    """Class of a preset and the config values that its name fixes.

    Raises:
        ValueError: unknown name; lists near matches.
    """
    if name in _PLAIN:
        kind, fixed = _PLAIN[name]
        return kind, dict(fixed)
    numbered = re.fullmatch(r"(.+)-([1-9]\d*)", str(name))
    if numbered and numbered[1] in _NUMBERED:
        kind, field = _NUMBERED[numbered[1]]
        return kind, {field: int(numbered[2])}
    near = difflib.get_close_matches(str(name).lower(), list(), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"presets are {', '.join(list())}"
    raise ValueError(f"unknown model {name!r}; {hint}")


def build(name: str, image_size: int | None = None, channels: int = 3, **overrides: Any) -> Autoencoder:
    """Build a model with fresh parameters.

    Args:
        name: a preset of :func:`list`.
        image_size: height and width in pixels, a power of two; None is 64, and 128 for k = 16.
        channels: image channels.
        overrides: any other field of the model's config, such as latent_dim, width, blocks, hidden, beta,
            backbone="authors". Defaults up to 64 px: 12 blocks, 64 wide, 12 latent dims; from 128 px on: 16, 128, 32;
            with backbone="mlp": 3 hidden layers, 1200 wide.

    Raises:
        ValueError: unknown name or field (near matches are listed), values that do not fit. TypeError: wrong type.
    """
    kind, fixed = family(name)
    numbered = next(iter(fixed)) if name not in _PLAIN else None
    if image_size is None:
        image_size = 128 if numbered and fixed[numbered] == 16 else 64
    # Of another type than int it fails in the config's own check.
    large = isinstance(image_size, int) and image_size >= 128
    sizes = {"latent_dim": 32, "width": 128, "blocks": 16} if large else {}
    if {**fixed, **overrides}.get("backbone") == "mlp":
        sizes |= {"width": 1200, "blocks": 3}
    values = {**sizes, **fixed, **overrides, "image_size": image_size, "channels": channels}
    if numbered and values[numbered] != fixed[numbered]:
        raise ValueError(f"{numbered} is fixed by the name {name!r}, got {overrides[numbered]!r}")
    config: AEConfig = from_dict(kind.config_type, values)
    return kind(name, config)
