"""Encoders and hourglass decoders: the convolutional backbone of the SAE paper, and the MLPs of the ISA-VAE paper."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..nn import ConvBlock
from ..nn._checks import ACTIVATION_LAYERS
from .config import AEConfig

# Blocks (from 0) that pool and that upsample in the authors' published configurations.
_AUTHORS = {
    64: {"blocks": 12, "pool": (0, 3, 6, 9, 11), "upsample": (1, 3, 6, 9)},
    128: {"blocks": 16, "pool": (0, 3, 6, 9, 12, 15), "upsample": (0, 3, 6, 9, 12)},
}


@dataclass(frozen=True)
class Plan:
    """Layout of a backbone.

    Attributes:
        base_size: image size between encoder and decoder.
        encoder_blocks, decoder_blocks: number of blocks. pool, upsample: blocks (from 0) that change the image size.
        final_upsample: double the image size before the output convolution.
        head: hidden widths of the MLP between the base map and the latent, encoder side; the decoder mirrors it.
    """

    base_size: int
    encoder_blocks: int
    decoder_blocks: int
    pool: tuple[int, ...]
    upsample: tuple[int, ...]
    final_upsample: bool = False
    head: tuple[int, ...] = ()


def plan(config: AEConfig) -> Plan:
    """The layout a config asks for.

    "paper": down to 4x4; pools in blocks 1, 4, 7, ... of the encoder, upsampling before blocks 3, 6, 9, ... of the
    decoder (SAE paper, appendix A.2.1), closer together where there are fewer than three blocks a pool.
    "authors": down to 2x2, MLP 256-128, the last upsampling before the output convolution.
    """
    if config.backbone == "mlp":
        raise ValueError("backbone must be paper or authors for a model of convolution blocks, got 'mlp'")
    if config.backbone == "authors":
        if config.image_size not in _AUTHORS:
            raise ValueError(f'image_size must be 64 or 128 with backbone="authors", got {config.image_size}')
        published = _AUTHORS[config.image_size]
        if config.blocks != published["blocks"]:
            expected = f'{published["blocks"]} with backbone="authors" at {config.image_size} px'
            raise ValueError(f"blocks must be {expected}, got {config.blocks}")
        blocks = published["blocks"]
        return Plan(2, blocks, blocks - 1, published["pool"], published["upsample"], True, (256, 128))
    halvings = config.image_size.bit_length() - 3
    if config.blocks < halvings:
        raise ValueError(f"blocks must be >= {halvings} to reach 4x4 from {config.image_size} px, got {config.blocks}")
    stride = min(3, config.blocks // halvings)
    pool = tuple(stride * i for i in range(halvings))
    upsample = tuple(stride * (i + 1) - 1 for i in range(halvings))
    return Plan(4, config.blocks, config.blocks, pool, upsample)


class Encoder(nn.Module):
    """Convolution blocks (the first 5x5), then a linear layer or an MLP.

    Shapes: x (N,C,H,W) -> (N, out_dim), float32 or the parameters' float64, also under autocast.
    """

    def __init__(self, config: AEConfig, out_dim: int) -> None:
        super().__init__()
        layout = plan(config)
        self.blocks = conv_encoder_blocks(config)
        features = config.width * layout.base_size**2
        self.head = mlp((features, *layout.head, out_dim), config.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        # The code keeps float32: bf16 would round it to three digits for a layer that costs nothing.
        with torch.autocast(x.device.type, enabled=False):
            return self.head(x.flatten(1).to(self.head[0].weight.dtype))


def conv_encoder_blocks(config: AEConfig) -> nn.ModuleList:
    """The encoder's convolution blocks, the first 5x5, pooling where :func:`plan` says."""
    layout = plan(config)
    return nn.ModuleList(
        ConvBlock(
            config.channels if index == 0 else config.width,
            config.width,
            kernel_size=5 if index == 0 else 3,
            pool=index in layout.pool,
            num_groups=config.num_groups,
            activation=config.activation,
        )
        for index in range(layout.encoder_blocks)
    )


class HourglassDecoder(nn.Module):
    """The encoder's mirror: a linear layer or an MLP to (width, base, base), convolution blocks, image logits.

    Shapes: z (N,D) -> logits (N,C,H,W), channels_last.
    """

    def __init__(self, config: AEConfig) -> None:
        super().__init__()
        layout = plan(config)
        self.shape = (config.width, layout.base_size, layout.base_size)
        self.final_upsample = layout.final_upsample
        features = config.width * layout.base_size**2
        self.head = mlp((config.latent_dim, *reversed(layout.head), features), config.activation)
        self.blocks = nn.ModuleList(
            ConvBlock(
                config.width,
                config.width,
                upsample=index in layout.upsample,
                num_groups=config.num_groups,
                activation=config.activation,
            )
            for index in range(layout.decoder_blocks)
        )
        output = nn.Conv2d(config.width, config.channels, 3, padding=1)
        self.output = output.to(memory_format=torch.channels_last)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        # As in the encoder, the code is read in float32 also under autocast.
        with torch.autocast(z.device.type, enabled=False):
            x = self.head(z.to(self.head[0].weight.dtype))
        x = x.unflatten(1, self.shape).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        if self.final_upsample:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.output(x)


class MLPEncoder(nn.Module):
    """Fully connected: image -> ``blocks - 1`` hidden layers of ``width`` ReLUs (ISA-VAE paper, appendix A.4).

    Shapes: x (N,C,H,W) -> (N, out_dim), float32 or the parameters' float64, also under autocast.
    """

    def __init__(self, config: AEConfig, out_dim: int) -> None:
        super().__init__()
        pixels = config.channels * config.image_size**2
        sizes = (pixels, *(config.width,) * (config.blocks - 1))
        self.layers = mlp(sizes, "relu")
        self.head = mlp((sizes[-1], out_dim), "relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        if self.layers:
            x = torch.relu(self.layers(x))
        # As in the convolutional encoder, the code keeps float32.
        with torch.autocast(x.device.type, enabled=False):
            return self.head(x.to(self.head[0].weight.dtype))


class MLPDecoder(nn.Module):
    """Fully connected: code -> ``blocks`` hidden layers of ``width`` tanhs -> image logits (ISA-VAE, appendix A.4).

    Shapes: z (N,D) -> logits (N,C,H,W).
    """

    def __init__(self, config: AEConfig) -> None:
        super().__init__()
        self.shape = (config.channels, config.image_size, config.image_size)
        hidden = (config.width,) * config.blocks
        self.layers = mlp((config.latent_dim, *hidden, config.channels * config.image_size**2), "tanh")

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        # The code is read in float32 also under autocast.
        with torch.autocast(z.device.type, enabled=False):
            first = self.layers[0]
            x = first(z.to(first.weight.dtype))
        return self.layers[1:](x).unflatten(1, self.shape)


def make_encoder(config: AEConfig, out_dim: int) -> nn.Module:
    """The encoder that ``config.backbone`` asks for; its ``head`` ends in the code."""
    return (MLPEncoder if config.backbone == "mlp" else Encoder)(config, out_dim)


def make_decoder(config: AEConfig) -> nn.Module:
    """The hourglass decoder that ``config.backbone`` asks for."""
    return (MLPDecoder if config.backbone == "mlp" else HourglassDecoder)(config)


def mlp(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers of the given sizes with the activation between them."""
    layers: list[nn.Module] = []
    for inp, out in itertools.pairwise(sizes):
        if layers:
            layers.append(ACTIVATION_LAYERS[activation]())
        layers.append(nn.Linear(inp, out))
    return nn.Sequential(*layers)
