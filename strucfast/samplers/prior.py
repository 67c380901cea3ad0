"""Sampling from the prior that a model was trained to match."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..models import Autoencoder


class PriorSampler:
    """Draws codes from a model's prior.

    Args:
        model: a model with a prior (VAE, beta-VAE).

    Raises:
        ValueError: the model has none; :class:`HybridSampler` works for every model.
    """

    def __init__(self, model: "Autoencoder") -> None:
        if not model.has_prior:
            raise ValueError(f"model must have a prior, got {model.name!r}, which has none: use HybridSampler")
        self.model = model

    def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw n codes, (n, D), on the model's device and in its dtype."""
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n must be an int, got {type(n).__name__}")
        if n < 0:
            raise ValueError(f"n must be >= 0, got {n}")
        return self.model.sample_prior(n, generator)
