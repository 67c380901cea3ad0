"""What every model shares: codes, images, losses, optimizers, folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.distributions import Distribution

from ..distributions import PointMass
from ..losses import LossTerms, bernoulli_reconstruction
from .config import AEConfig


class Autoencoder(nn.Module):
    """Base of all models: an encoder, a decoder and a loss.

    A subclass sets ``self.encoder`` (images to features (N,F)) and ``self.decoder`` (codes (N,D) to logits).

    Attributes:
        name: preset name. config: its dataclass. latent_dim: D. image_shape: (C,H,W).
        latent_groups: lists of code dims, one per latent variable, the first enters the decoder deepest.
        has_prior: whether :meth:`sample_prior` is defined.
        dataset_size: images of the training set, None until :meth:`begin_training`; estimators that weight by it
            need it. training_step: how many updates were made, a float scalar on the model's device that the trainer
            writes; schedules such as a growing capacity read it.
    """

    config_type: ClassVar[type[AEConfig]] = AEConfig
    has_prior: ClassVar[bool] = False

    def __init__(self, name: str, config: AEConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_type):
            raise TypeError(f"config must be a {self.config_type.__name__}, got {type(config).__name__}")
        self.name, self.config = name, config
        self.dataset_size: int | None = None
        # A tensor, so that a captured graph sees its changes; the trainer knows it, so no file keeps it.
        self.register_buffer("training_step", torch.zeros(()), persistent=False)

    @property
    def latent_dim(self) -> int:
        return self.config.latent_dim

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.config.channels, self.config.image_size, self.config.image_size)

    @property
    def latent_groups(self) -> list[list[int]]:
        return [[dim] for dim in range(self.latent_dim)]

    def encode(self, x: torch.Tensor) -> Distribution:
        """Posterior over codes of images (N,C,H,W) in [0,1]; ``.mean`` (N,D) is the code. A point mass here."""
        return PointMass(self._features(x), validate_args=False)

    def decode_logits(self, z: torch.Tensor) -> torch.Tensor:
        """Image logits (N,C,H,W) of codes (N,D)."""
        return self.decoder(self._codes(z))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Images (N,C,H,W) in [0,1] of codes (N,D), float32 also under autocast."""
        logits = self.decode_logits(z)
        return torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions (N,C,H,W) in [0,1] of images (N,C,H,W), through the posterior mean."""
        return self.decode(self.encode(x).mean)

    def loss(self, x: torch.Tensor, *, generator: torch.Generator | None = None, optimizer_index: int = 0) -> LossTerms:
        """Loss of a batch of images (N,C,H,W), floating point in [0,1] (the range is :meth:`check_images`' to check).

        Args:
            generator: randomness of stochastic encoders. optimizer_index: which of :meth:`optimizers` takes the step.

        Returns:
            the total with gradient and every term, in nats per image, float32 also under autocast.

        Raises:
            TypeError: integer images. ValueError: a wrong shape or an empty batch.
        """
        self._check_optimizer_index(optimizer_index)
        x = self._images(x)
        reconstruction = bernoulli_reconstruction(self.decode_logits(self._features(x)), x)
        return LossTerms(reconstruction, {"reconstruction": reconstruction.detach()})

    def sample_prior(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Codes (n,D) from the prior; only models with ``has_prior``."""
        raise ValueError(f"{self.name!r} has no prior: use strucfast.samplers.HybridSampler")

    def optimizers(self, config: Any = None) -> list[torch.optim.Optimizer]:
        """Adam, as in the SAE paper (5e-4, .9/.999) unless ``config`` says else.

        Args:
            config: object with ``learning_rate``, ``betas`` and ``weight_decay``; a missing one keeps the default.
        """
        return [adam(self.parameters(), config)]

    def begin_training(self, dataset: Any, indices: Any, *, resumed: bool = False) -> None:
        """Learn what the loss must know about the training set; the trainer calls it once, before the first step.

        Args:
            dataset: anything with ``images(indices)`` -> uint8 (N,H,W,C). indices: (M,) which of them train.
            resumed: parameters come from a checkpoint, so nothing may be initialised from the data.
        """
        self.dataset_size = len(indices)

    def check_images(self, x: torch.Tensor) -> None:
        """Check type, shape and range of images; reads the values, so once per data set and not per step.

        Raises:
            TypeError: integer images. ValueError: a wrong shape, an empty batch, NaN, or values outside [0,1].
        """
        self._images(x)
        low, high = (value.item() for value in torch.aminmax(x.detach()))
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"x must be images with values in [0, 1], got values from {low:g} to {high:g}")

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder, each atomically; :func:`load` reads them."""
        from .pretrained import save

        save(self, directory)

    def extra_repr(self) -> str:
        return f"name={self.name}, image_shape={self.image_shape}, latent_dim={self.latent_dim}"

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        """The encoder's output (N,F) for checked images."""
        return self.encoder(self._images(x))

    def _codes(self, z: torch.Tensor) -> torch.Tensor:
        """Checked codes."""
        if not z.is_floating_point():
            raise TypeError(f"z must be a floating-point tensor, got {z.dtype}")
        if z.dim() != 2 or z.shape[1] != self.latent_dim or z.shape[0] == 0:
            raise ValueError(f"z must have shape (N, {self.latent_dim}) with N >= 1, got {tuple(z.shape)}")
        return z

    def _images(self, x: torch.Tensor) -> torch.Tensor:
        """Checked images in channels_last, the layout of every activation."""
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"x must be floating-point images in [0, 1], got {x.dtype}: divide uint8 images by 255")
        if x.dim() != 4 or x.shape[1:] != self.image_shape:
            expected = ", ".join(str(size) for size in self.image_shape)
            raise ValueError(f"x must have shape (N, {expected}), got {tuple(x.shape)}")
        if x.shape[0] == 0:
            raise ValueError("x must hold at least one image, got an empty batch")
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _check_optimizer_index(index: int) -> None:
        if index != 0:
            raise ValueError(f"optimizer_index must be 0, the only optimizer, got {index}")


def adam(
    parameters: Iterable[nn.Parameter],
    config: Any = None,
    *,
    learning_rate: float = 5e-4,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Adam:
    """Adam over ``parameters``: what ``config`` says (see :meth:`Autoencoder.optimizers`), else the given rates."""
    optimizer = torch.optim.Adam(
        parameters,
        lr=getattr(config, "learning_rate", learning_rate),
        betas=tuple(getattr(config, "betas", betas)),
        weight_decay=getattr(config, "weight_decay", 0.0),
        # One launch over all parameters: on small nets the loop over tensors is a tenth of the step.
        fused=True,
    )
    optimizer.register_load_state_dict_post_hook(_match_layouts)
    return optimizer


def _match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Lay restored moments out as their parameters: fused Adam walks raw memory, and files keep no strides."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
