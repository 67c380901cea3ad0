"""KL divergences in closed form, registered with torch.distributions.kl_divergence.

Against a normal with diagonal covariance only the first two moments and the entropy of the other side enter, so every
distribution here that has them in closed form has one.
"""

import torch
from torch.distributions import Distribution, Independent, Normal, register_kl

from ._random import LOG_2_PI
from .anisotropic_normal import AnisotropicNormal
from .generalized_normal import GeneralizedNormal
from .lp_nested import LpNested
from .lp_nested_isa import LpNestedISA
from .product_student_t import ProductStudentT


@register_kl(AnisotropicNormal, AnisotropicNormal)
def _aniso_aniso(p: AnisotropicNormal, q: AnisotropicNormal) -> torch.Tensor:
    return _normal_normal(p.mean, p.scale, q.mean, q.scale)


@register_kl(AnisotropicNormal, Independent)
def _aniso_independent(p: AnisotropicNormal, q: Independent) -> torch.Tensor:
    return _normal_normal(p.mean, p.scale, *_diagonal_normal(p, q))


@register_kl(Independent, AnisotropicNormal)
def _independent_aniso(p: Independent, q: AnisotropicNormal) -> torch.Tensor:
    if isinstance(p.base_dist, GeneralizedNormal) and p.reinterpreted_batch_ndims == 1:
        return _from_moments(p, q.mean, q.scale)
    return _normal_normal(*_diagonal_normal(p, q), q.mean, q.scale)


@register_kl(GeneralizedNormal, Normal)
def _generalized_normal(p: GeneralizedNormal, q: Normal) -> torch.Tensor:
    return _cross_entropy(p, q.loc, q.scale) - p.entropy()


@register_kl(LpNestedISA, AnisotropicNormal)
@register_kl(LpNested, AnisotropicNormal)
def _moments_aniso(p: Distribution, q: AnisotropicNormal) -> torch.Tensor:
    return _from_moments(p, q.mean, q.scale)


@register_kl(LpNestedISA, Independent)
@register_kl(LpNested, Independent)
def _moments_independent(p: Distribution, q: Independent) -> torch.Tensor:
    return _from_moments(p, *_diagonal_normal(p, q))


@register_kl(ProductStudentT, AnisotropicNormal)
def _student_aniso(p: ProductStudentT, q: AnisotropicNormal) -> torch.Tensor:
    return _from_student(p, q.mean, q.scale)


@register_kl(ProductStudentT, Independent)
def _student_independent(p: ProductStudentT, q: Independent) -> torch.Tensor:
    return _from_student(p, *_diagonal_normal(p, q))


def _from_student(p: ProductStudentT, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Infinite without a variance, also where the mean does not exist."""
    finite = (p.df > 2).all(dim=-1)
    return torch.where(finite, _from_moments(p, mean, scale), torch.inf)


def _normal_normal(
    mean: torch.Tensor, scale: torch.Tensor, other_mean: torch.Tensor, other_scale: torch.Tensor
) -> torch.Tensor:
    """``1/2 sum_d [ r - 1 - log r + (m - m')^2/s'^2 ]``, r the ratio of the variances."""
    log_ratio = 2 * (scale.log() - other_scale.log())
    # expm1 keeps the digits where the two nearly agree
    per_dim = torch.expm1(log_ratio) - log_ratio + ((mean - other_mean) / other_scale) ** 2
    return 0.5 * per_dim.sum(dim=-1)


def _from_moments(p: Distribution, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return _cross_entropy(p, mean, scale).sum(dim=-1) - p.entropy()


def _cross_entropy(p: Distribution, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``-E log N(x; mean, scale)`` of each dim."""
    second = (p.variance + (p.mean - mean) ** 2) / scale**2
    return 0.5 * (second + LOG_2_PI) + scale.log()


def _diagonal_normal(p: Distribution, q: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of the Independent(Normal, 1) of the pair."""
    normal = p if isinstance(p, Independent) else q
    if not isinstance(normal.base_dist, Normal) or normal.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(
            f"no closed KL divergence from {p} to {q}: of Independent only Independent(Normal, 1) has one here"
        )
    return normal.base_dist.loc, normal.base_dist.scale
