"""The structural decoder: a constant map, shaped by latent variables on its way to an image."""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ._checks import positive_int
from .conv_block import ConvBlock
from .str_tfm import StrTfmBank


class StructuralDecoder(nn.Module):
    """``S_i = ConvBlock^n(StrTfm_i(S_{i-1}, U_i))`` from a trainable ``S_0`` (SAE paper, section 2.1, equation 1).

    S_0 (width, base, base) is the same for all samples. The structural transforms are spread evenly over the blocks;
    the first latent variable enters deepest. All their MLPs run in one launch, and each affine but the first rides in
    the epilogue of the block before it.

    Args:
        latent_dim: D, dims of the whole code. channels: image channels of the output.
        transforms: d, number of structural transforms, at most one per block.
        width: channels of every block. blocks: number of blocks.
        upsample: 0-based indices of the blocks that double the image size first.
        final_upsample: double the image size before the output convolution, which then counts as a place for a
            structural transform (the authors' code).
        shared: every transform sees the whole code (AdaAE); otherwise the code is split evenly, D/d dims each.
        base_size: height and width of S_0. hidden, activation, scale_map: as :class:`StrTfmBank`.
        num_groups: groups of the blocks' normalisation.

    Shapes: z (N,D) -> logits (N, channels, H, W), H = base_size * 2**(number of upsamplings), channels_last.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int = 3,
        *,
        transforms: int = 12,
        width: int = 64,
        blocks: int = 12,
        upsample: Collection[int] = (2, 5, 8, 11),
        final_upsample: bool = False,
        shared: bool = False,
        base_size: int = 4,
        hidden: Sequence[int] = (64, 64, 64),
        activation: str = "mish",
        scale_map: str = "exp",
        num_groups: int = 8,
    ) -> None:
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("channels", channels), ("transforms", transforms)):
            positive_int(name, value)
        for name, value in (("width", width), ("blocks", blocks), ("base_size", base_size)):
            positive_int(name, value)
        places = blocks + bool(final_upsample)
        if transforms > places:
            raise ValueError(f"transforms must be at most {places}, one before each block, got {transforms}")
        if not shared and latent_dim % transforms:
            raise ValueError(f"transforms must divide latent_dim = {latent_dim}, got {transforms}")
        if not all(0 <= index < blocks for index in upsample):
            raise ValueError(f"upsample must hold block indices in 0..{blocks - 1}, got {sorted(upsample)}")
        self.latent_dim, self.shared, self.final_upsample = latent_dim, bool(shared), bool(final_upsample)
        self.places = tuple(i * places // transforms for i in range(transforms))
        self.base = nn.Parameter(torch.randn(width, base_size, base_size))
        variable_dim = latent_dim if shared else latent_dim // transforms
        self.transforms = StrTfmBank(transforms, variable_dim, width, hidden, activation, scale_map)
        self.blocks = nn.ModuleList(
            ConvBlock(width, width, upsample=index in upsample, num_groups=num_groups, activation=activation)
            for index in range(blocks)
        )
        self.output = nn.Conv2d(width, channels, 3, padding=1).to(memory_format=torch.channels_last)

    @property
    def latent_groups(self) -> list[list[int]]:
        """Code dims of each latent variable, deepest first; single dims when every transform sees all of them."""
        dim = 1 if self.shared else self.transforms.latent_dim
        return [list(range(start, start + dim)) for start in range(0, self.latent_dim, dim)]

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z must have shape (N, {self.latent_dim}), got {tuple(z.shape)}")
        count = self.transforms.num_variables
        u = z.unsqueeze(1).expand(-1, count, -1) if self.shared else z.reshape(z.shape[0], count, -1)
        scales, shifts = self.transforms(u)
        # One copy and one unbind for all transforms: twelve strided slices would cost twelve zero-filled gradients.
        affines = list(zip(_per_variable(scales), _per_variable(shifts)))
        # Place p is block p's input: place 0 is S_0's own affine, place p > 0 the epilogue of block p - 1.
        at = dict(zip(self.places, affines))
        x = self._first(*at[0])
        for index, block in enumerate(self.blocks):
            x = block(x, *at.get(index + 1, (None, None)))
        if self.final_upsample:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.output(x)

    def _first(self, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """The first transform as an outer product, (N,C,h,w) in channels_last: no S_0 is copied to the batch."""
        width, height, breadth = self.base.shape
        base = self.base.flatten(1).t().to(scale.dtype)
        y = torch.addcmul(shift.unsqueeze(1), scale.unsqueeze(1), base)
        return y.reshape(-1, height, breadth, width).permute(0, 3, 1, 2)


def _per_variable(affine: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(N,d,C) as d contiguous (N,C)."""
    return affine.transpose(0, 1).contiguous().unbind(0)
