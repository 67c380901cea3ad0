"""The averaged KL of a VAE, decomposed through the aggregate posterior."""

from collections.abc import Sequence

import torch
from torch.distributions import Distribution, Independent

from .. import ops
from ..reference.kl_terms import KLTerms
from ._checks import as_distribution, floating, loss_dtype
from ._gather import gather_rows, world


def kl_terms(
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    *,
    dataset_size: int | None,
    estimator: str = "mss",
    prior: Distribution | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    gather: bool = False,
) -> KLTerms:
    """Decompose the batch's KL(q(z|x) || p(z)) into the terms that the beta-TCVAE and the HFVAE weigh.

    Args:
        z: (B, D), z[i] drawn from posterior i. mean, logvar: (B, D) of the diagonal Gaussian posteriors.
        dataset_size: N, the number of training images, >= the (gathered) batch; not used by "naive".
        estimator: of log q(z): "mss" (exact minibatch stratified weights), "mws" or "naive" (weights 1/B).
        prior: distribution with event shape (D,) or prior module, None for N(0, I).
        groups: partition of the dims, or None: each dim is a group of its own, so that ``between_groups`` is the total
            correlation and ``within_groups`` zero.
        gather: estimate log q(z) with the posteriors of all processes of torch.distributed. Collective: every process
            calls it with the same B, and averages its gradients afterwards. Nothing changes in a single process.

    Returns:
        :class:`KLTerms`, in float32 (float64 where one of the three is). Half types are computed in float32.
        index_code_mi + between_groups + within_groups + dimwise_kl = mean of log q(z|x) - log p(z), always. The
        HFVAE's corrections by the prior vanish where the prior factorises over dims. Where it factorises over the
        groups only (an Lp-nested ISA prior with its subspaces inside the groups) that of ``between_groups`` vanishes
        and that of ``within_groups``, which has no closed form, is left inside ``dimwise_kl``.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: an empty batch; a prior of another shape; groups that the prior does not factorise over; and what
            :func:`strucfast.ops.aggregate_log_density` raises.

    References: Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", equation 2; Esmaeili et al. 2019,
    "Structured Disentangled Representations", equation 6.
    """
    for name, tensor in (("z", z), ("mean", mean), ("logvar", logvar)):
        floating(name, tensor)
    if z.dim() != 2 or z.shape != mean.shape or z.shape != logvar.shape or z.shape[0] == 0:
        shapes = f"{tuple(z.shape)}, {tuple(mean.shape)} and {tuple(logvar.shape)}"
        raise ValueError(f"kl_terms: z, mean and logvar must have the same shape (B, D) with B >= 1, got {shapes}")
    prior = as_distribution(prior)
    if prior is not None:
        _check_prior(prior, z.shape[1], groups)
    batch, dims = z.shape
    dtype = loss_dtype(z, mean, logvar)
    if z.dtype is not dtype or mean.dtype is not dtype or logvar.dtype is not dtype:
        z, mean, logvar = z.to(dtype), mean.to(dtype), logvar.to(dtype)

    rank, processes = world() if gather else (0, 1)
    if processes == 1:
        means, logvars, offset = mean, logvar, None
    else:
        means, logvars = gather_rows(torch.cat((mean, logvar), dim=1)).split(dims, dim=1)
        offset = rank * batch
    terms = ops.kl_terms(
        z, means, logvars, weights=estimator, dataset_size=dataset_size, groups=groups, standard_normal=prior is None,
        _diagonal_offset=offset,
    )  # fmt: skip
    if prior is None:
        return terms
    return terms._replace(dimwise_kl=terms.dimwise_kl - prior.log_prob(z).mean())


def _check_prior(prior: Distribution, dims: int, groups: Sequence[Sequence[int]] | None) -> None:
    if prior.batch_shape or tuple(prior.event_shape) != (dims,):
        shapes = f"batch {tuple(prior.batch_shape)}, event {tuple(prior.event_shape)}"
        raise ValueError(f"kl_terms: prior must have batch shape () and event shape ({dims},), got {shapes}")
    if groups is None:
        return
    owner = {dim: number for number, group in enumerate(groups) for dim in group}
    for subspace in _subspaces(prior, dims):
        if len({owner.get(dim) for dim in subspace}) > 1:
            raise ValueError(
                f"kl_terms: groups must not split dims that the prior {type(prior).__name__} holds together, got dims"
                f" {list(subspace)} in several groups"
            )


def _subspaces(prior: Distribution, dims: int) -> list[range]:
    """Runs of dims that are independent of each other under the prior; one run where nothing is known."""
    independent = isinstance(prior, Independent) and prior.reinterpreted_batch_ndims == 1
    if independent or getattr(prior, "independent_coordinates", False):
        return [range(dim, dim + 1) for dim in range(dims)]
    runs, start = [], 0
    for size in getattr(prior, "sizes", (dims,)):
        runs.append(range(start, start + size))
        start += size
    return runs
