"""What the SAE training step is measured against: the same net written with plain torch layers."""

import torch
import torch.nn.functional as F
from torch import nn

from strucfast.models import SAE


class PlainSAE(nn.Module):
    """A structural autoencoder of plain layers, with the parameters (copied) and the loss of a strucfast model.

    One ``nn.Sequential`` per block (upsampling, convolution, pool, GroupNorm, activation), one MLP per structural
    transform called in a loop, and an affine per transform, as existing projects write it. Contiguous (NCHW);
    ``.to(memory_format=torch.channels_last)`` makes the other baseline.
    """

    def __init__(self, model: SAE) -> None:
        super().__init__()
        decoder = model.decoder
        self.encoder_blocks = nn.ModuleList(block.to_torch() for block in model.encoder.blocks)
        self.head = nn.Linear(model.encoder.head[0].in_features, model.latent_dim)
        self.base = nn.Parameter(decoder.base.detach().clone())
        self.mlps = nn.ModuleList(decoder.transforms.to_mlps())
        self.places = decoder.places
        self.decoder_blocks = nn.ModuleList(block.to_torch() for block in decoder.blocks)
        self.output = nn.Conv2d(decoder.output.in_channels, decoder.output.out_channels, 3, padding=1)
        self.head.load_state_dict(model.encoder.head[0].state_dict())
        self.output.load_state_dict(decoder.output.state_dict())
        self.to(memory_format=torch.contiguous_format)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Codes (N,D) of images (N,C,H,W)."""
        for block in self.encoder_blocks:
            x = block(x)
        return self.head(x.flatten(1))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Image logits of codes (N,D)."""
        codes = z.chunk(len(self.mlps), dim=1)
        features = self.base.expand(z.shape[0], -1, -1, -1)
        for index, block in enumerate(self.decoder_blocks):
            if index in self.places:
                number = self.places.index(index)
                logits, shift = self.mlps[number](codes[number]).chunk(2, dim=1)
                features = logits.exp()[:, :, None, None] * features + shift[:, :, None, None]
            features = block(features)
        return self.output(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Loss of images (N,C,H,W) in [0,1]: binary cross entropy summed over pixels, averaged over the batch."""
        logits = self.decode(self.codes(x)).float()
        return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / x.shape[0]
