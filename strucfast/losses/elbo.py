"""The evidence lower bound: its KL term in closed form or from one sample, weighted, annealed, held at a capacity."""

import math
from dataclasses import dataclass

import torch
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from ._checks import as_distribution, loss_dtype, no_autocast, points, posterior, prior_log_prob

KL_ESTIMATES = ("auto", "analytic", "sample")


@dataclass(frozen=True)
class LossTerms:
    """A loss to minimise and the terms it was made of.

    Attributes:
        total: scalar with gradient. terms: name -> detached scalar, before any weight.
    """

    total: torch.Tensor
    terms: dict[str, torch.Tensor]


def gaussian_kl(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) per sample, in nats.

    ``1/2 sum_d [ mean^2 + exp(logvar) - 1 - logvar ]`` (Kingma & Welling 2014, appendix B).
    Half types are computed in float32.

    Shapes: mean and logvar (N,D) -> (N,).

    Raises:
        TypeError: a tensor that is not floating. ValueError: shapes differ or are not (N,D) with N >= 1.
    """
    posterior(mean, logvar)
    dtype = loss_dtype(mean, logvar)
    mean, logvar = mean.to(dtype), logvar.to(dtype)
    # expm1 keeps the digits of exp(logvar) - 1 near the prior, where both are almost equal.
    return 0.5 * (mean * mean + torch.expm1(logvar) - logvar).sum(dim=1)


def sample_kl(
    z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor, prior: Distribution | None = None
) -> torch.Tensor:
    """One-sample estimate of KL(N(mean, exp(logvar)) || p) per sample, in nats.

    ``log q(z_n | x_n) - log p(z_n)`` with z_n drawn from posterior n (ISA-VAE paper, section 4; Kingma & Welling 2014,
    equation 6): unbiased for any prior with a density; single values may be negative. Half types are computed in
    float32, also under autocast.

    Args:
        prior: anything with ``log_prob`` of (N,D) -> (N,), such as a Distribution with event shape (D,) or a prior
            module of ``strucfast.distributions.priors``; None is N(0, I).

    Shapes: z, mean and logvar (N,D) -> (N,).

    Raises:
        TypeError: a tensor that is not floating. ValueError: shapes do not fit, or the prior's log_prob is not (N,).
    """
    posterior(mean, logvar)
    points("z", z)
    if z.shape != mean.shape:
        raise ValueError(f"z must have the shape of mean, {tuple(mean.shape)}, got {tuple(z.shape)}")
    dtype = loss_dtype(z, mean, logvar)
    with no_autocast(z):
        z, mean, logvar = z.to(dtype), mean.to(dtype), logvar.to(dtype)
        u = (z - mean) * torch.exp(-0.5 * logvar)
        if prior is None:
            # The two log(2 pi) cancel.
            return 0.5 * (z * z - u * u - logvar).sum(dim=1)
        return -0.5 * (u * u + logvar + math.log(2 * math.pi)).sum(dim=1) - prior_log_prob(prior, z)


def prior_kl(
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    prior: Distribution | None = None,
    *,
    estimate: str = "auto",
) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || p) per sample, in nats: in closed form where there is one, else from the sample z.

    Args:
        prior: a torch Distribution with event shape (D,) or a prior module; None is N(0, I).
        estimate: "auto" (closed form if ``torch.distributions.kl_divergence`` knows one), "analytic" (insist on it) or
            "sample" (:func:`sample_kl`).

    Shapes: z, mean and logvar (N,D) -> (N,).

    Raises:
        TypeError, ValueError: as in :func:`sample_kl`. ValueError: an unknown ``estimate``.
        NotImplementedError: "analytic" where no closed form is known.
    """
    if estimate not in KL_ESTIMATES:
        raise ValueError(f"estimate must be one of {', '.join(KL_ESTIMATES)}, got {estimate!r}")
    if estimate == "sample":
        return sample_kl(z, mean, logvar, prior)
    if prior is None:
        return gaussian_kl(mean, logvar)
    posterior(mean, logvar)
    prior = as_distribution(prior)
    # A closed form would broadcast over dims that the prior has not.
    if isinstance(prior, Distribution) and prior.event_shape and prior.event_shape != mean.shape[1:]:
        expected, got = tuple(mean.shape[1:]), tuple(prior.event_shape)
        raise ValueError(f"prior must have event shape {expected}, got {got}")
    dtype = loss_dtype(mean, logvar)
    with no_autocast(mean):
        scale = torch.exp(0.5 * logvar.to(dtype))
        q = Independent(Normal(mean.to(dtype), scale, validate_args=False), 1, validate_args=False)
        try:
            return kl_divergence(q, prior)
        except NotImplementedError:
            if estimate == "analytic":
                raise
    return sample_kl(z, mean, logvar, prior)


def elbo_terms(reconstruction: torch.Tensor, kl: torch.Tensor, beta: float | torch.Tensor = 1.0) -> LossTerms:
    """Negative beta-ELBO ``reconstruction + beta * mean_n kl_n`` (Higgins et al. 2017, equation 4; survey, eq. 6).

    The survey's lambda_1 is beta - 1. A beta of :func:`linear_schedule` is KL annealing (Bowman et al. 2016).

    Args:
        reconstruction: scalar, already averaged over the batch. kl: (N,) nats per sample. beta: weight of the KL.
    """
    divergence = kl.mean()
    total = reconstruction + beta * divergence
    return LossTerms(total, {"reconstruction": reconstruction.detach(), "kl": divergence.detach()})


def capacity_terms(
    reconstruction: torch.Tensor, kl: torch.Tensor, *, gamma: float, capacity: float | torch.Tensor
) -> LossTerms:
    """Negative ELBO with the KL held at a capacity, ``reconstruction + gamma * | mean_n kl_n - C |``.

    Burgess et al. 2018, "Understanding disentangling in beta-VAE", equation 8; C usually grows while training, see
    :func:`linear_schedule`. Terms: "reconstruction", "kl", and "capacity", the present C.

    Args:
        reconstruction: scalar, already averaged over the batch. kl: (N,) nats per sample. gamma: weight of the
            deviation. capacity: C in nats, a number or a scalar tensor.
    """
    divergence = kl.mean()
    if not isinstance(capacity, torch.Tensor):
        # Filled on the device: a copy from the host could not be captured in a CUDA graph.
        capacity = divergence.new_full((), capacity)
    total = reconstruction + gamma * (divergence - capacity).abs()
    terms = {"reconstruction": reconstruction.detach(), "kl": divergence.detach(), "capacity": capacity.detach()}
    return LossTerms(total, terms)


def linear_schedule(
    step: float | torch.Tensor, steps: float, start: float = 0.0, end: float = 1.0
) -> float | torch.Tensor:
    """``start`` at step 0, ``end`` from step ``steps`` on, linear between.

    Args:
        step: a number, or a scalar tensor such as a model's ``training_step``; the value is of the same kind.

    Raises:
        ValueError: ``steps`` is not > 0.
    """
    if not steps > 0:
        raise ValueError(f"steps must be > 0, got {steps}")
    if isinstance(step, torch.Tensor):
        return start + (end - start) * (step / steps).clamp(0.0, 1.0)
    return start + (end - start) * min(max(step / steps, 0.0), 1.0)
