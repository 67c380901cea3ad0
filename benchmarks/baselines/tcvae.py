"""What the beta-TCVAE training step is measured against: the same net of plain layers, log densities of all pairs."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.baselines.total_correlation import kl_decomposition, log_importance_weights
from strucfast.models import TCVAE


class PlainTCVAE(nn.Module):
    """A beta-TCVAE of plain layers, with the parameters (copied) and the loss of a strucfast model.

    One ``nn.Sequential`` per block; log q(z) from a (B,B,D) tensor of all pairs, as the public implementations have it.
    Contiguous; ``.to(memory_format=torch.channels_last)`` makes the other baseline.
    """

    def __init__(self, model: TCVAE) -> None:
        super().__init__()
        encoder, decoder, config = model.encoder, model.decoder, model.config
        self.weights = (config.alpha, config.beta, config.gamma)
        self.dataset_size = model.dataset_size
        self.encoder_blocks = nn.Sequential(*(block.to_torch() for block in encoder.blocks))
        self.encoder_head = _linear(encoder.head[0])
        self.decoder_head = _linear(decoder.head[0])
        self.shape = decoder.shape
        self.decoder_blocks = nn.Sequential(*(block.to_torch() for block in decoder.blocks))
        self.output = nn.Conv2d(decoder.output.in_channels, decoder.output.out_channels, 3, padding=1)
        self.output.load_state_dict(decoder.output.state_dict())
        self.to(memory_format=torch.contiguous_format)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and log-variances, (N,D) each, of images (N,C,H,W)."""
        return self.encoder_head(self.encoder_blocks(x).flatten(1)).float().chunk(2, dim=1)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Means (N,D), the codes of images (N,C,H,W)."""
        return self.encode(x)[0]

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Image logits of codes (N,D)."""
        return self.output(self.decoder_blocks(self.decoder_head(z).unflatten(1, self.shape)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Loss of images (N,C,H,W) in [0,1], in nats per image."""
        mean, logvar = self.encode(x)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
        logits = self.decode(z).float()
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / x.shape[0]
        log_weights = log_importance_weights(x.shape[0], self.dataset_size, x.device)
        terms = kl_decomposition(z, mean, logvar, log_weights)
        return reconstruction + sum(weight * term for weight, term in zip(self.weights, terms))


def _linear(layer: nn.Linear) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.load_state_dict(layer.state_dict())
    return copy
