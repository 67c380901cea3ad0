"""MS-VAE: a second stage that adds to a frozen first stage's reconstruction what its code could not hold."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.distributions import Distribution, Independent, Normal, constraints

from .. import ops
from ..losses import LossTerms, bernoulli_reconstruction, elbo_terms, gaussian_kl
from ..nn import AdaIN
from ..nn._checks import ACTIVATION_LAYERS, positive_int
from .backbone import make_encoder
from .base import Autoencoder, adam
from .config import AEConfig, VAEConfig, from_dict, to_dict
from .vae import VAE

# Images that go through the first stage at once, always: with the batch's size the last bits of a convolution change
# (64 px, batch 40 against 1: 37 of 491,520 bytes of Y differed), and Y must not depend on what it was computed with.
CHUNK = 16
_SHAPE = torch.Size()


@dataclass(frozen=True)
class MSVAEConfig(VAEConfig):
    """The second stage, and the first stage inside it.

    Attributes:
        latent_dim: dims of Z alone; codes have the first stage's dims in front. width, blocks, backbone, num_groups:
            of the encoder of X - Y.
        decoder_width: channels of the decoder's first convolution; each further one has twice as many, at most eight
            times as many. activation: of encoder and decoder.
        per_pixel: Z gives a scale and shift per channel and pixel (the authors' code), not per channel (the paper).
        stage1: a run folder, one of its checkpoints or a folder of ``save_pretrained``; read when the model is new.
        stage1_model: name and config of the first stage, filled in by the model; its weights are the model's own.
    """

    latent_dim: int = 10
    activation: str = "relu"
    decoder_width: int = 64
    per_pixel: bool = False
    stage1: str = ""
    stage1_model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("decoder_width", self.decoder_width)
        if self.image_size < 8 or self.image_size & (self.image_size - 1):
            raise ValueError(f"image_size must be a power of two >= 8, got {self.image_size}")


class MSVAE(Autoencoder):
    """Two-stage VAE ("Improving the Reconstruction of Disentangled Representation Learners via Multi-Stage Modelling").

    Stage 1, any trained model with a decoder, gives each image X a code C (its posterior mean) and a reconstruction
    Y = decode(C), rounded to 8 bits. Stage 2 is a conditional VAE (equation 2 b): an encoder of X - Y gives q(Z|X,Y), a
    decoder p(X|Y,Z) reads Y by convolutions and Z only through an AdaIN after each of them. Codes are [C, Z]; decoding
    computes Y from C again, so that the whole is one model: sampled, traversed and evaluated like any other. Stage 1 is
    frozen and may have two stages itself.

    Args:
        stage1: the first stage (a copy is kept); default that of ``config``.

    Raises:
        ValueError: no first stage, or one that does not fit: no decoder, other image size or channels.
    """

    config_type: ClassVar[type[AEConfig]] = MSVAEConfig

    def __init__(self, name: str, config: MSVAEConfig, stage1: Autoencoder | None = None) -> None:
        super().__init__(name, config)
        if stage1 is not None:
            stage1 = copy.deepcopy(stage1)
        elif config.stage1_model:
            stage1 = _rebuild(config.stage1_model)
        else:
            stage1 = load_stage1(config.stage1)
        _check_fit(stage1, config)
        header = {"name": stage1.name, "config": to_dict(stage1.config)}
        self.config: MSVAEConfig = dataclasses.replace(config, stage1_model=header)
        self.stage1 = stage1.requires_grad_(False).eval()
        self.has_prior = stage1.has_prior
        self.encoder = make_encoder(config, 2 * config.latent_dim)
        self.decoder = StyledDecoder(config)

    @property
    def latent_dim(self) -> int:
        """Dims of [C, Z]."""
        return self.stage1.latent_dim + self.config.latent_dim

    @property
    def latent_groups(self) -> list[list[int]]:
        """The first stage's variables, then each dim of Z."""
        return [*self.stage1.latent_groups, *([dim] for dim in range(self.stage1.latent_dim, self.latent_dim))]

    def train(self, mode: bool = True) -> MSVAE:
        super().train(mode)
        # It is data here.
        self.stage1.eval()
        return self

    def encode(self, x: torch.Tensor) -> Distribution:
        """Posterior of [C, Z] given images (N,C,H,W): the first stage's, and N(mean, exp(logvar)) given X - Y."""
        x = self._images(x)
        code, y = self.first_stage(x)
        mean, logvar = self.encoder(x - y).chunk(2, dim=1)
        residual = Independent(Normal(mean, torch.exp(0.5 * logvar), validate_args=False), 1, validate_args=False)
        first = self.stage1.encode(x)
        return _Joint(first, residual, torch.cat([code.to(mean.dtype), mean], dim=1))

    def decode_logits(self, z: torch.Tensor) -> torch.Tensor:
        """Image logits (N,C,H,W) of codes [C, Z] (N,D); piecewise constant in C, because Y is rounded to 8 bits."""
        code, residual = self._codes(z).split((self.stage1.latent_dim, self.config.latent_dim), dim=1)
        return self.decoder(self._reconstruct(code), residual)

    def loss(self, x: torch.Tensor, *, generator: torch.Generator | None = None, optimizer_index: int = 0) -> LossTerms:
        """Negative beta-ELBO of X given Y; terms "reconstruction" and "kl" (of Z).

        Args:
            x: images (N,C,H,W) in [0,1], or (N,2C,H,W): X and, known already, Y as :meth:`stage1_images` gives it.
        """
        self._check_optimizer_index(optimizer_index)
        channels = self.config.channels
        if isinstance(x, torch.Tensor) and x.dim() == 4 and x.shape[1] == 2 * channels:
            x, y = (self._images(part) for part in x.split(channels, dim=1))
        else:
            x = self._images(x)
            _, y = self.first_stage(x)
        mean, logvar = self.encoder(x - y).chunk(2, dim=1)
        z = VAE._reparametrise(mean, logvar, generator)
        reconstruction = bernoulli_reconstruction(self.decoder(y, z), x)
        return elbo_terms(reconstruction, gaussian_kl(mean, logvar), self.config.beta)

    def sample_prior(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Codes (n, D): C from the first stage's prior, Z from N(0, I)."""
        code = self.stage1.sample_prior(n, generator)
        device = generator.device if generator is not None else code.device
        noise = torch.randn((n, self.config.latent_dim), generator=generator, device=device, dtype=code.dtype)
        return torch.cat([code, noise.to(code.device)], dim=1)

    def optimizers(self, config: Any = None) -> list[torch.optim.Optimizer]:
        """Adam over the second stage, 1e-4 (the paper's) unless ``config`` says else."""
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [adam(own, config, learning_rate=1e-4)]

    @torch.no_grad()
    def first_stage(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Code C (N,D1) and 8-bit reconstruction Y (N,C,H,W) in [0,1] of images (N,C,H,W); no gradient.

        Both are functions of each image alone: bit for bit the same in whatever batch it comes.
        """
        x = self._images(x)
        with torch.autocast(x.device.type, enabled=False):
            code = _in_chunks(lambda part: self.stage1.encode(part).mean, x)
        return code, self._reconstruct(code)

    def stage1_images(self, images: torch.Tensor) -> torch.Tensor:
        """Y of images X, both uint8 (N,H,W,C): what the trainer keeps so that it is computed once."""
        x = images.permute(0, 3, 1, 2).to(torch.float32).div_(255)
        _, y = self.first_stage(x.to(next(self.stage1.parameters()).dtype))
        return y.mul(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def stage1_key(self) -> str:
        """A checksum of the first stage's config and weights."""
        digest = hashlib.sha256(json.dumps(self.config.stage1_model, sort_keys=True).encode())
        for name, tensor in sorted(self.stage1.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def _reconstruct(self, code: torch.Tensor) -> torch.Tensor:
        """Y of codes C: the first stage's images rounded to 8 bits, as multiples of 1/255."""
        dtype = next(self.stage1.parameters()).dtype
        with torch.autocast(code.device.type, enabled=False):
            y = _in_chunks(self.stage1.decode, code.to(dtype))
        # float32 like an image read from a file, so that a kept Y and a computed one are the same numbers
        y = y.float().mul_(255).round_().div_(255)
        return y.to(dtype).contiguous(memory_format=torch.channels_last)


class StyledDecoder(nn.Module):
    """p(X|Y,Z): convolutions of Y down to 4x4, a dense layer, transposed convolutions back; Z styles each of them.

    64 px: conv 5x5/2 64-128-256-512, dense 8192, deconv 256-128-64-image; AdaIN and the activation follow all seven
    but the last. Other sizes have one convolution fewer or more on each side.

    Shapes: y (N,C,H,W), z (N,K) -> logits (N,C,H,W).
    """

    def __init__(self, config: MSVAEConfig) -> None:
        super().__init__()
        steps = config.image_size.bit_length() - 3
        widths = [config.decoder_width * 2 ** min(step, 3) for step in range(steps)]
        options = {"stride": 2, "padding": 2}
        # A bias before the instance norm would be cancelled by it.
        self.down = nn.ModuleList(
            nn.Conv2d(inp, out, 5, bias=False, **options) for inp, out in zip([config.channels, *widths], widths)
        )
        self.dense = nn.Linear(16 * widths[-1], 16 * widths[-1])
        outputs = [*widths[-2::-1], config.channels]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(inp, out, 5, output_padding=1, bias=last, **options)
            for inp, out, last in zip(widths[::-1], outputs, [*[False] * (steps - 1), True])
        )
        self.to(memory_format=torch.channels_last)
        sizes = [(width, config.image_size >> step) for step, width in enumerate(widths, 1)]
        sizes += [(width, size) for width, size in sizes[-2::-1]]
        self.styles = nn.ModuleList(_adain(config, width, size) for width, size in sizes)
        self.activation = ACTIVATION_LAYERS[config.activation]()

    def forward(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        styles = iter(self.styles)
        for layer in self.down:
            y = self._styled(layer(y), next(styles), z)
        shape = y.shape[1:]
        y = self.activation(self.dense(y.flatten(1))).unflatten(1, shape).contiguous(memory_format=torch.channels_last)
        for layer in self.up[:-1]:
            y = self._styled(layer(y), next(styles), z)
        return self.up[-1](y)

    def _styled(self, x: torch.Tensor, style: AdaIN, z: torch.Tensor) -> torch.Tensor:
        # The code is read in float32 also under autocast.
        with torch.autocast(z.device.type, enabled=False):
            scale, shift = style.affine(z.to(style.linear.weight.dtype))
        return self.activation(ops.adain(x, scale, shift, eps=style.eps))


class _Joint(Distribution):
    """Posterior of two independent parts of a code, side by side; event shape (D1 + D2,)."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, first: Distribution, second: Distribution, mean: torch.Tensor) -> None:
        self.first, self.second, self._mean = first, second, mean
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    @property
    def mean(self) -> torch.Tensor:
        return self._mean

    @property
    def variance(self) -> torch.Tensor:
        return torch.cat([self.first.variance.to(self._mean.dtype), self.second.variance], dim=-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Joint:
        shape = torch.Size(batch_shape)
        mean = self._mean.expand(shape + self.event_shape)
        return _Joint(self.first.expand(shape), self.second.expand(shape), mean)

    def rsample(self, sample_shape: Any = _SHAPE) -> torch.Tensor:
        parts = (part.rsample(sample_shape) for part in (self.first, self.second))
        return torch.cat([part.to(self._mean.dtype) for part in parts], dim=-1)

    def sample(self, sample_shape: Any = _SHAPE) -> torch.Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        split = self.first.event_shape[0]
        return self.first.log_prob(value[..., :split]) + self.second.log_prob(value[..., split:])

    def entropy(self) -> torch.Tensor:
        return self.first.entropy() + self.second.entropy()


def load_stage1(source: str | os.PathLike) -> Autoencoder:
    """The trained model of a run folder (its best checkpoint), a checkpoint folder or a folder of ``save_pretrained``.

    Raises:
        ValueError: none is named, or there is none; a damaged one is named by file and field.
    """
    from .pretrained import CONFIG_FILE, load

    if not source:
        raise ValueError(
            "stage1 is missing: train a first stage (strucfast train beta-tcvae), then name its run folder "
            "(--model.overrides stage1=runs/beta-tcvae)"
        )
    folder = Path(source)
    if not folder.is_dir():
        raise ValueError(f"stage1: expected the folder of a trained run, got {str(source)!r}: no such folder")
    for place in (folder, folder / "checkpoints" / "best", folder / "checkpoints" / "last"):
        if (place / CONFIG_FILE).is_file():
            return load(place)
    seeds = sorted(str(path) for path in folder.glob("seed-*"))
    hint = f"it holds several runs, choose one of {', '.join(seeds)}" if seeds else "no trained model there (yet)"
    raise ValueError(f"stage1: expected a run folder with a checkpoint, or a saved model, got {str(source)!r}: {hint}")


def _rebuild(header: dict[str, Any]) -> Autoencoder:
    """The first stage that a saved config describes, with fresh weights."""
    from .registry import family

    if not isinstance(header.get("name"), str) or not isinstance(header.get("config"), dict):
        raise ValueError(f"stage1_model: expected a name and a config, got {header!r}")
    kind, _ = family(header["name"])
    return kind(header["name"], from_dict(kind.config_type, header["config"]))


def _check_fit(stage1: Autoencoder, config: MSVAEConfig) -> None:
    if not isinstance(stage1, Autoencoder) or getattr(stage1, "decoder", None) is None:
        name = getattr(stage1, "name", type(stage1).__name__)
        raise ValueError(f"stage1: expected a model with a decoder, got {name!r}, which has none")
    for name, option in (("image_size", "--model.image-size"), ("channels", "--data.spec")):
        first, ours = getattr(stage1.config, name), getattr(config, name)
        if first != ours:
            raise ValueError(
                f"stage1: expected a model with {name} {ours}, got {stage1.name!r} with {first}: both stages must see "
                f"the same images ({option})"
            )


def _adain(config: MSVAEConfig, channels: int, size: int) -> AdaIN:
    if not config.per_pixel:
        return AdaIN(channels, config.latent_dim)
    return AdaIN(channels, config.latent_dim, per_pixel_shape=(size, size), activation="relu", eps=1e-6)


def _in_chunks(function: Any, x: torch.Tensor) -> torch.Tensor:
    """``function`` of x (N, ...), in chunks of one size, the last filled up by repeating its last row."""
    parts = []
    for part in x.split(CHUNK):
        missing = CHUNK - len(part)
        if missing:
            part = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])
        if part.dim() == 4:
            part = part.contiguous(memory_format=torch.channels_last)
        parts.append(function(part)[: CHUNK - missing])
    return torch.cat(parts)
