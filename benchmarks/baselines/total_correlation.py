"""What the fused aggregate densities are measured against: every pair's log-density in one (B, B, D) tensor.

As the public beta-TCVAE code (rtqichen) and disentanglement_lib formulate it, here with the exact stratified weights on
the diagonal.
"""

import math

import torch


def gaussian_log_density(z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Elementwise, in nats."""
    normalisation = math.log(2 * math.pi)
    inverse_sigma = torch.exp(-0.5 * logvar)
    scaled = (z - mean) * inverse_sigma
    return -0.5 * (scaled * scaled + logvar + normalisation)


def log_importance_weights(batch: int, dataset_size: int, device: torch.device) -> torch.Tensor:
    """(B, B) stratified weights: 1/N on the diagonal, (N-1)/(N(B-1)) elsewhere."""
    other = math.log((dataset_size - 1) / (dataset_size * (batch - 1)))
    return torch.full((batch, batch), other, device=device).fill_diagonal_(-math.log(dataset_size))


def aggregate_densities(
    z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor, log_weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log q(z) and sum_d log q(z_d) of each sample, (B,) and (B,)."""
    pairs = gaussian_log_density(z.unsqueeze(1), mean.unsqueeze(0), logvar.unsqueeze(0))
    joint = torch.logsumexp(log_weights + pairs.sum(dim=2), dim=1)
    marginal = torch.logsumexp(log_weights.unsqueeze(2) + pairs, dim=1).sum(dim=1)
    return joint, marginal


def kl_decomposition(
    z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor, log_weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mutual information, total correlation and dimension-wise KL of a batch."""
    joint, marginal = aggregate_densities(z, mean, logvar, log_weights)
    posterior = gaussian_log_density(z, mean, logvar).sum(dim=1)
    prior = gaussian_log_density(z, torch.zeros_like(z), torch.zeros_like(z)).sum(dim=1)
    return (posterior - joint).mean(), (joint - marginal).mean(), (marginal - prior).mean()
