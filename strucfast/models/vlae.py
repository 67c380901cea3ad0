"""Variational ladder autoencoders: VLAE-k."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..nn import ConvBlock
from ..nn._checks import ACTIVATION_LAYERS, one_of, positive_int, widths
from .backbone import conv_encoder_blocks, plan
from .config import AEConfig, VAEConfig
from .vae import VAE


@dataclass(frozen=True)
class VLAEConfig(VAEConfig):
    """A ladder of ``rungs``, each with an equal part of the code.

    Attributes:
        rungs: k, a divisor of latent_dim, at most one per block.
        encoder_hidden, decoder_hidden: hidden widths of the rungs' MLPs. None: three layers of 64, as many as in the
            SAE paper (appendix A.2.1, which gives no widths); with backbone="authors" their code's 128-64 and 64-128.
        rung_channels: feature maps that a decoder rung makes of its part of the code.
    """

    rungs: int = 12
    encoder_hidden: tuple[int, ...] | None = None
    decoder_hidden: tuple[int, ...] | None = None
    rung_channels: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("backbone", self.backbone, ("paper", "authors"))
        positive_int("rungs", self.rungs)
        positive_int("rung_channels", self.rung_channels)
        if self.latent_dim % self.rungs:
            raise ValueError(f"rungs must divide latent_dim = {self.latent_dim}, got {self.rungs}")
        if self.rungs > self.blocks:
            raise ValueError(f"rungs must be at most {self.blocks}, one for each block, got {self.rungs}")
        published = {"encoder_hidden": (128, 64), "decoder_hidden": (64, 128)}
        for name, value in published.items():
            default = value if self.backbone == "authors" else (64, 64, 64)
            given = getattr(self, name)
            object.__setattr__(self, name, default if given is None else widths(name, given))


class VLAE(VAE):
    """Variational ladder autoencoder: each of k latent variables has its own depth in encoder and decoder.

    Zhao, Song, Ermon 2017, "Learning Hierarchical Features from Deep Generative Models", on the backbone of the SAE
    paper (Leeb et al., section 3 and appendix A.2.1). The loss is the VAE's; the hierarchy comes from the architecture.
    Variable 0 is the deepest: read from the last feature maps of the encoder, the first to enter the decoder.
    """

    config_type: ClassVar[type[AEConfig]] = VLAEConfig

    def _make_networks(self) -> tuple[nn.Module, nn.Module]:
        return LadderEncoder(self.config), LadderDecoder(self.config)

    @property
    def latent_groups(self) -> list[list[int]]:
        size = self.latent_dim // self.config.rungs
        return [list(range(start, start + size)) for start in range(0, self.latent_dim, size)]


class LadderEncoder(nn.Module):
    """Convolution blocks with k inference rungs: global max-pool of a block's output, then an MLP to one variable.

    Rung i reads what decoder rung i shapes, counted from the other end of the net: rung 0 the last block's output.

    Shapes: x (N,C,H,W) -> (N,2D), means and log-variances; float32 or the parameters' float64, also under autocast.
    """

    def __init__(self, config: VLAEConfig) -> None:
        super().__init__()
        self.blocks = conv_encoder_blocks(config)
        self.places = tuple(len(self.blocks) - 1 - place for place in _places(config, len(self.blocks)))
        variable_dim = config.latent_dim // config.rungs
        sizes = (config.width, *config.encoder_hidden, 2 * variable_dim)
        self.rungs = MLPBank(config.rungs, sizes, config.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled: dict[int, torch.Tensor] = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.places:
                # Not amax: it shares a gradient among equal maxima, in four passes over the map instead of one.
                if torch.are_deterministic_algorithms_enabled() and x.is_cuda:
                    pooled[index] = x.amax(dim=(2, 3))
                else:
                    pooled[index] = F.adaptive_max_pool2d(x, 1).flatten(1)
        # The code keeps float32 also under autocast.
        with torch.autocast(x.device.type, enabled=False):
            features = torch.stack([pooled[place] for place in self.places])
            mean, log_sigma = self.rungs(features).chunk(2, dim=2)
            return torch.cat([_as_code(mean), 2.0 * _as_code(log_sigma)], dim=1)


class LadderDecoder(nn.Module):
    """A trainable constant map, then convolution blocks with k generative rungs before them, evenly spread.

    A rung's MLP turns its variable into feature maps that are constant over the image and appended as channels.

    Shapes: z (N,D) -> logits (N,C,H,W), channels_last.
    """

    def __init__(self, config: VLAEConfig) -> None:
        super().__init__()
        layout = plan(config)
        self.final_upsample = layout.final_upsample
        self.places = _places(config, layout.decoder_blocks + layout.final_upsample)
        self.variable_dim = config.latent_dim // config.rungs
        sizes = (self.variable_dim, *config.decoder_hidden, config.rung_channels)
        self.rungs = MLPBank(config.rungs, sizes, config.activation)
        self.base = nn.Parameter(torch.randn(config.width, layout.base_size, layout.base_size))

        def inputs(place: int) -> int:
            return config.width + (config.rung_channels if place in self.places else 0)

        self.blocks = nn.ModuleList(
            ConvBlock(
                inputs(index),
                config.width,
                upsample=index in layout.upsample,
                num_groups=config.num_groups,
                activation=config.activation,
            )
            for index in range(layout.decoder_blocks)
        )
        self.output = nn.Conv2d(inputs(layout.decoder_blocks), config.channels, 3, padding=1)
        self.output.to(memory_format=torch.channels_last)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        # As in the encoder, the code is read in float32 also under autocast.
        with torch.autocast(z.device.type, enabled=False):
            u = z.unflatten(1, (-1, self.variable_dim)).transpose(0, 1)
            maps = dict(zip(self.places, self.rungs(u).unbind(0)))
        x = self.base.expand(z.shape[0], -1, -1, -1)
        for index, block in enumerate(self.blocks):
            x = block(_append(x, maps.get(index)))
        x = _append(x, maps.get(len(self.blocks)))
        if self.final_upsample:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.output(x)


class MLPBank(nn.Module):
    """d MLPs of one shape, evaluated together; a fresh bank has the distribution of d ``nn.Linear`` stacks.

    Parameters: ``weights.{i}`` (d,out,in) and ``biases.{i}`` (d,out), layer after layer.
    Shapes: x (d,N,in) -> (d,N,out), in the parameters' dtype.
    """

    def __init__(self, count: int, sizes: Sequence[int], activation: str) -> None:
        super().__init__()
        shapes = list(zip(sizes[1:], sizes[:-1]))
        self.weights = nn.ParameterList(torch.empty(count, out, inp) for out, inp in shapes)
        self.biases = nn.ParameterList(torch.empty(count, out) for out, _ in shapes)
        self.activation = ACTIVATION_LAYERS[activation]()
        for weight, bias in zip(self.weights, self.biases):
            bound = 1.0 / math.sqrt(weight.shape[2])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.weights[0].dtype)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias.unsqueeze(1), self.activation(x) if layer else x, weight.transpose(1, 2))
        return x


def _places(config: VLAEConfig, count: int) -> tuple[int, ...]:
    """Before which of ``count`` convolutions each decoder rung enters, deepest first."""
    return tuple(i * count // config.rungs for i in range(config.rungs))


def _as_code(values: torch.Tensor) -> torch.Tensor:
    """(k,N,d) of the rungs as (N, k d)."""
    return values.transpose(0, 1).flatten(1)


def _append(x: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
    """x (N,C,H,W) with features (N,F) as F more channels, channels_last."""
    if features is None:
        return x
    maps = features.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
    parts = [part.contiguous(memory_format=torch.channels_last) for part in (x, maps)]
    return torch.cat(parts, dim=1)
