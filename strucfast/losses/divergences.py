"""Divergences between the aggregate posterior and the prior, from samples; dependence between groups of latents."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch.distributions import Distribution

from ..ops import aggregate_log_density, hsic, mmd, mmd_dimwise
from ._checks import latent_groups, loss_dtype, no_autocast, points, posterior, prior_log_prob
from .elbo import LossTerms

DIVERGENCES = ("kl_pq", "kl_qp", "mmd", "mmd_dimwise")
WAE_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def wae_bandwidths(latent_dim: int, sigma: float = 1.0, scales: Sequence[float] = WAE_SCALES) -> tuple[float, ...]:
    """Constants C = 2 d sigma^2 s of the kernel C / (C + |a - b|^2), for every scale s.

    2 d sigma^2 is the expected squared distance of two draws from N(0, sigma^2 I) (Tolstikhin et al. 2018, section 4);
    the several scales, whose kernels add up, are those of the authors' code.
    """
    if latent_dim < 1:
        raise ValueError(f"latent_dim must be >= 1, got {latent_dim}")
    if not 0.0 < sigma < math.inf:
        raise ValueError(f"sigma must be finite and > 0, got {sigma}")
    return tuple(2.0 * latent_dim * sigma**2 * scale for scale in scales)


def aggregate_kl_pq(
    prior_z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor, prior: Distribution | None = None
) -> torch.Tensor:
    """KL(p(z) || q(z)) of the prior from the minibatch mixture of posteriors, in nats.

    ``mean_s [ log p(z_s) - log 1/B sum_j q(z_s | x_j) ]``, z_s ~ p (Mathieu et al. 2019, appendix on the alpha-term).
    The z_s belong to no posterior of the batch, so every one weighs 1/B. Biased upwards by the batch's finite size:
    with D = 10 about 3.8 nats at B = 64 and 1.5 at B = 512 where the truth is 0.

    Args:
        prior: whose density counts, a Distribution with event shape (D,) or a prior module; None is N(0, I). Its
            parameters get a gradient only if prior_z has one (is reparametrised): at fixed draws that of log p(z_s)
            has mean 0 and would be noise.

    Shapes: prior_z (S,D) drawn from the prior, mean and logvar (B,D) -> scalar.

    Raises:
        TypeError: a tensor that is not floating. ValueError: shapes do not fit.
    """
    posterior(mean, logvar)
    points("prior_z", prior_z, mean.shape[1])
    with no_autocast(mean):
        dtype = loss_dtype(prior_z, mean, logvar)
        z = prior_z.to(dtype)
        log_q = aggregate_log_density(z, mean.to(dtype), logvar.to(dtype), weights="naive").joint
        with torch.set_grad_enabled(torch.is_grad_enabled() and prior_z.requires_grad):
            log_p = prior_log_prob(prior, z)
        return (log_p - log_q).mean()


def aggregate_kl_qp(
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    prior: Distribution | None = None,
    *,
    estimator: str = "naive",
    dataset_size: int | None = None,
) -> torch.Tensor:
    """KL(q(z) || p(z)) of the aggregate posterior, estimated on its own minibatch, in nats.

    ``mean_i [ log q(z_i) - log p(z_i) ]``, the second half of E KL(q(z|x) || p) = MI + KL(q(z) || p) (survey, eq. 7).

    Args:
        prior: a Distribution with event shape (D,) or a prior module; None is N(0, I).
        estimator: weights of :func:`strucfast.ops.aggregate_log_density`: "naive" (1/B, log q too high), "mss" (the
            exact importance weights) or "mws". dataset_size: needed by "mss" and "mws".

    Shapes: z, mean and logvar (B,D), z[i] drawn from posterior i -> scalar.

    Raises:
        TypeError: a tensor that is not floating. ValueError: shapes do not fit, dataset_size missing or below B.
    """
    posterior(mean, logvar)
    points("z", z, mean.shape[1])
    with no_autocast(mean):
        dtype = loss_dtype(z, mean, logvar)
        z, mean, logvar = z.to(dtype), mean.to(dtype), logvar.to(dtype)
        density = aggregate_log_density(z, mean, logvar, weights=estimator, dataset_size=dataset_size)
        return (density.joint - prior_log_prob(prior, z)).mean()


def aggregate_divergence(
    name: str,
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    prior_z: torch.Tensor | None = None,
    prior: Distribution | None = None,
    *,
    bandwidth: float | Sequence[float] | None = None,
) -> torch.Tensor:
    """D(q(z), p(z)) between aggregate posterior and prior on one minibatch, by name (Mathieu et al. 2019, equation 7).

    Args:
        name: "kl_pq" (:func:`aggregate_kl_pq`, the paper's clustering experiment), "kl_qp" (:func:`aggregate_kl_qp`),
            "mmd" (kernel C/(C + |a - b|^2), unbiased) or "mmd_dimwise" (the same in every dim alone, summed over the
            dims: the paper's sparsity experiment).
        prior_z: draws from the prior, all but "kl_qp" need them. prior: its density, the two KLs need it; None is
            N(0, I).
        bandwidth: C of the kernel or several, which add up; None: of "mmd" :func:`wae_bandwidths`, of "mmd_dimwise"
            the paper's code's 0.2, 0.4, 1, 2, 4, 10.

    Shapes: z, mean and logvar (B,D), prior_z (S,D) -> scalar.

    Raises:
        ValueError: an unknown name, prior_z missing, shapes do not fit.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {name!r}")
    if name == "kl_qp":
        return aggregate_kl_qp(z, mean, logvar, prior)
    if prior_z is None:
        raise ValueError(f"prior_z must be given for the divergence {name!r}, got None")
    if name == "kl_pq":
        return aggregate_kl_pq(prior_z, mean, logvar, prior)
    points("z", z)
    points("prior_z", prior_z, z.shape[1])
    with no_autocast(z):
        dtype = loss_dtype(z, prior_z)
        z, prior_z = z.to(dtype), prior_z.to(dtype)
        if name == "mmd":
            bandwidth = wae_bandwidths(z.shape[1]) if bandwidth is None else bandwidth
            return mmd(z, prior_z, kernel="imq", bandwidth=bandwidth)
        options = {} if bandwidth is None else {"bandwidth": bandwidth}
        return mmd_dimwise(z, prior_z, kernel="imq", **options).sum()


def decomposition_terms(
    reconstruction: torch.Tensor, kl: torch.Tensor, divergence: torch.Tensor, *, alpha: float, beta: float
) -> LossTerms:
    """Negative L_{alpha,beta}: ``reconstruction + beta * mean_n kl_n + alpha * D(q(z), p(z))``.

    Mathieu et al. 2019, equation 7: beta sets the overlap of the posteriors, alpha the structure of the latent space.
    WAE-MMD is beta = 0 with a deterministic encoder.

    Args:
        reconstruction: scalar, already averaged over the batch. kl: (N,) nats per sample. divergence: scalar, such as
            :func:`aggregate_divergence`.
    """
    mean_kl = kl.mean()
    total = reconstruction + beta * mean_kl + alpha * divergence
    terms = {"reconstruction": reconstruction, "kl": mean_kl, "divergence": divergence}
    return LossTerms(total, {name: term.detach() for name, term in terms.items()})


def group_hsic(
    z: torch.Tensor,
    groups: Sequence[Sequence[int]],
    *,
    bandwidth: float | None = None,
    unbiased: bool = False,
) -> torch.Tensor:
    """Sum over pairs of groups of HSIC(z_G, z_H), Gaussian kernels (survey, eq. 12 and 21; Lopez et al. 2018).

    The biased statistic is >= 0, and of order 1/N under independence; the unbiased one (Song et al. 2012, N >= 4) may
    be negative.

    Args:
        groups: disjoint lists of latent dims; dims in none of them are free.
        bandwidth: sigma of exp(-|a - b|^2 / (2 sigma^2)) per square root of a group's size; None is 1, so that two
            draws from N(0, I) lie at a kernel of about exp(-1) whatever the size.

    Shapes: z (N,D) -> scalar.

    Raises:
        TypeError: z is not floating. ValueError: fewer than two groups, or groups that overlap or leave the range.
    """
    points("z", z)
    checked = latent_groups(groups, z.shape[1])
    if len(checked) < 2:
        raise ValueError(f"groups must be at least two, got {len(checked)}")
    scale = 1.0 if bandwidth is None else float(bandwidth)
    with no_autocast(z):
        z = z.to(loss_dtype(z))
        parts = [(z[:, list(group)], scale * math.sqrt(len(group))) for group in checked]
        pairs = [
            hsic(a, b, kernel="rbf", bandwidth_x=sigma_a, bandwidth_y=sigma_b, unbiased=unbiased)
            for (a, sigma_a), (b, sigma_b) in itertools.combinations(parts, 2)
        ]
    return torch.stack(pairs).sum()


def variable_hsic(
    z: torch.Tensor,
    variable: torch.Tensor,
    *,
    bandwidth: float | None = None,
    bandwidth_variable: float = 1.0,
    unbiased: bool = False,
) -> torch.Tensor:
    """HSIC(z, s) with a given variable s, such as an attribute the code shall not carry (survey, section 3.1.3).

    Args:
        variable: (N,) or (N,K) floating values; class labels as one-hot rows.
        bandwidth: as in :func:`group_hsic`, for all of z. bandwidth_variable: sigma of the kernel of s.

    Shapes: z (N,D), variable (N,) or (N,K) -> scalar.

    Raises:
        TypeError: a tensor that is not floating. ValueError: shapes do not fit.
    """
    points("z", z)
    variable = variable.unsqueeze(1) if variable.dim() == 1 else variable
    points("variable", variable)
    if variable.shape[0] != z.shape[0]:
        raise ValueError(f"variable must have the {z.shape[0]} rows of z, got {variable.shape[0]}")
    sigma = (1.0 if bandwidth is None else float(bandwidth)) * math.sqrt(z.shape[1])
    with no_autocast(z):
        dtype = loss_dtype(z)
        z, variable = z.to(dtype), variable.to(dtype)
        return hsic(z, variable, kernel="rbf", bandwidth_x=sigma, bandwidth_y=bandwidth_variable, unbiased=unbiased)
