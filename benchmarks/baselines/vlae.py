"""What the VLAE training step is measured against: the same ladder written with plain torch layers."""

import torch
import torch.nn.functional as F
from torch import nn

from strucfast.models import VLAE
from strucfast.models.vlae import MLPBank


class PlainVLAE(nn.Module):
    """A variational ladder autoencoder of plain layers, with the parameters (copied) and the loss of a strucfast model.

    One ``nn.Sequential`` per block and one MLP per rung, called in a loop; a decoder rung's features are expanded over
    the image and concatenated. Contiguous; ``.to(memory_format=torch.channels_last)`` makes the other baseline.
    """

    def __init__(self, model: VLAE) -> None:
        super().__init__()
        encoder, decoder = model.encoder, model.decoder
        self.beta = model.config.beta
        self.encoder_blocks = nn.ModuleList(block.to_torch() for block in encoder.blocks)
        self.encoder_rungs = _mlps(encoder.rungs)
        self.encoder_places = encoder.places
        self.base = nn.Parameter(decoder.base.detach().clone())
        self.decoder_rungs = _mlps(decoder.rungs)
        self.decoder_places = decoder.places
        self.decoder_blocks = nn.ModuleList(block.to_torch() for block in decoder.blocks)
        self.output = nn.Conv2d(decoder.output.in_channels, decoder.output.out_channels, 3, padding=1)
        self.output.load_state_dict(decoder.output.state_dict())
        self.to(memory_format=torch.contiguous_format)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and log-variances, (N,D) each, of images (N,C,H,W)."""
        pooled = {}
        for index, block in enumerate(self.encoder_blocks):
            x = block(x)
            if index in self.encoder_places:
                pooled[index] = F.adaptive_max_pool2d(x, 1).flatten(1)
        codes = [mlp(pooled[place]).float() for mlp, place in zip(self.encoder_rungs, self.encoder_places)]
        means, log_sigmas = zip(*(code.chunk(2, dim=1) for code in codes))
        return torch.cat(means, dim=1), 2.0 * torch.cat(log_sigmas, dim=1)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Means (N,D), the codes of images (N,C,H,W)."""
        return self.encode(x)[0]

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Image logits of codes (N,D)."""
        codes = z.chunk(len(self.decoder_rungs), dim=1)
        x = self.base.expand(z.shape[0], -1, -1, -1)
        for index, block in enumerate(self.decoder_blocks):
            if index in self.decoder_places:
                number = self.decoder_places.index(index)
                features = self.decoder_rungs[number](codes[number])[:, :, None, None]
                x = torch.cat([x, features.expand(-1, -1, *x.shape[2:])], dim=1)
            x = block(x)
        return self.output(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Loss of images (N,C,H,W) in [0,1]: binary cross entropy and KL, summed, averaged over the batch."""
        mean, logvar = self.encode(x)
        logits = self.decode(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)).float()
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / x.shape[0]
        kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp()) / x.shape[0]
        return reconstruction + self.beta * kl


def _mlps(bank: MLPBank) -> nn.ModuleList:
    """The bank's MLPs as plain layers with copies of the parameters."""
    mlps = nn.ModuleList()
    for number in range(bank.weights[0].shape[0]):
        layers: list[nn.Module] = []
        for weight, bias in zip(bank.weights, bank.biases):
            linear = nn.Linear(weight.shape[2], weight.shape[1])
            with torch.no_grad():
                linear.weight.copy_(weight[number])
                linear.bias.copy_(bias[number])
            layers += [linear, type(bank.activation)()]
        mlps.append(nn.Sequential(*layers[:-1]))
    return mlps
