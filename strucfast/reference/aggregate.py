"""Minibatch estimates of the aggregate posterior's log-densities."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .modulate import compute_dtype

WEIGHTS = ("mss", "mws", "naive")


class AggregateLogDensity(NamedTuple):
    """Log-densities of S samples under the aggregate posterior, in nats.

    Attributes:
        joint: (S,), log q(z). marginal: (S,D), log q(z_d). grouped: (S,G), log q(z_g); (S,0) without groups.
    """

    joint: torch.Tensor
    marginal: torch.Tensor
    grouped: torch.Tensor


def log_weights(weights: str, posteriors: int, dataset_size: int | None) -> tuple[float, float]:
    """Log importance weight of a sample's own posterior, and of every other one.

    mss: the exact, symmetric minibatch stratified weights; mws: 1/(N B); naive: 1/B.
    """
    if weights == "naive":
        return -math.log(posteriors), -math.log(posteriors)
    if weights == "mws":
        return (-math.log(dataset_size) - math.log(posteriors),) * 2
    if posteriors == 1:
        # Only N = 1 comes here: the one posterior is the whole mixture.
        return 0.0, 0.0
    return -math.log(dataset_size), math.log((dataset_size - 1) / dataset_size) - math.log(posteriors - 1)


def aggregate_log_density(
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    *,
    weights: str = "mss",
    dataset_size: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    _diagonal_offset: int | None = None,
) -> AggregateLogDensity:
    """Plain PyTorch truth of :func:`strucfast.ops.aggregate_log_density`, with the same arguments."""
    dtype = compute_dtype(z)
    z, mean, logvar = z.to(dtype), mean.to(dtype), logvar.to(dtype)
    own, other = log_weights(weights, mean.shape[0], dataset_size)
    rows = torch.arange(z.shape[0], device=z.device).unsqueeze(1) + (_diagonal_offset or 0)
    diagonal = rows == torch.arange(mean.shape[0], device=z.device)
    log_w = torch.where(diagonal, torch.tensor(own, dtype=dtype), torch.tensor(other, dtype=dtype))
    u = (z.unsqueeze(1) - mean) * torch.exp(-0.5 * logvar)
    density = -0.5 * (u * u + logvar + math.log(2 * math.pi))
    joint = torch.logsumexp(log_w + density.sum(dim=2), dim=1)
    marginal = torch.logsumexp(log_w.unsqueeze(2) + density, dim=1)
    sums = [density[:, :, list(group)].sum(dim=2) for group in groups or ()]
    grouped = [torch.logsumexp(log_w + total, dim=1) for total in sums]
    # Without groups an empty slice, so that the three outputs require grad alike.
    return AggregateLogDensity(joint, marginal, torch.stack(grouped, dim=1) if grouped else joint.unsqueeze(1)[:, :0])
