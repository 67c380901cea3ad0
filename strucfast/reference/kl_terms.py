"""The averaged KL of a VAE's posteriors, decomposed through the aggregate posterior."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .aggregate import AggregateLogDensity, aggregate_log_density
from .modulate import compute_dtype


class KLTerms(NamedTuple):
    """Scalars in nats with gradient; ``index_code_mi + total_correlation + dimwise_kl`` is the one-sample KL.

    Attributes:
        index_code_mi: mean of log q(z|x) - log q(z), the mutual information of data index and code.
        total_correlation: mean of log q(z) - sum_d log q(z_d).
        dimwise_kl: mean of sum_d log q(z_d) - log p(z).
        between_groups: mean of log q(z) - sum_g log q(z_g), the total correlation of the groups.
        within_groups: mean of sum_g log q(z_g) - sum_d log q(z_d), the total correlations inside the groups, summed.
    """

    index_code_mi: torch.Tensor
    total_correlation: torch.Tensor
    dimwise_kl: torch.Tensor
    between_groups: torch.Tensor
    within_groups: torch.Tensor


def kl_terms(
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    *,
    weights: str = "mss",
    dataset_size: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    standard_normal: bool = True,
    _diagonal_offset: int | None = None,
) -> KLTerms:
    """Plain PyTorch truth of :func:`strucfast.ops.kl_terms`, with the same arguments."""
    dtype = compute_dtype(z)
    z, mean, logvar = z.to(dtype), mean.to(dtype), logvar.to(dtype)
    q = aggregate_log_density(
        z, mean, logvar, weights=weights, dataset_size=dataset_size, groups=groups, _diagonal_offset=_diagonal_offset
    )
    return terms_of(z, mean, logvar, q, groups is not None, standard_normal, _diagonal_offset or 0)


def terms_of(
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    q: AggregateLogDensity,
    grouped: bool,
    standard_normal: bool,
    offset: int,
) -> KLTerms:
    """The terms from the aggregate posterior's log-densities; sample i was drawn from posterior ``offset + i``."""
    own_mean, own_logvar = mean[offset : offset + z.shape[0]], logvar[offset : offset + z.shape[0]]
    u = (z - own_mean) * torch.exp(-0.5 * own_logvar)
    posterior = -0.5 * (u * u + own_logvar + math.log(2 * math.pi)).sum(dim=1).mean()
    prior = -0.5 * (z * z + math.log(2 * math.pi)).sum(dim=1).mean() if standard_normal else 0.0
    joint, marginal = q.joint.mean(), q.marginal.sum(dim=1).mean()
    # Without groups each dim is one; the sum of nothing is 0 and requires grad as the other terms do.
    of_groups = q.grouped.sum(dim=1).mean() if grouped else marginal
    within = of_groups - marginal if grouped else q.grouped.sum()
    return KLTerms(posterior - joint, joint - marginal, marginal - prior, joint - of_groups, within)
