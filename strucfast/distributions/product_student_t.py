"""Independent Student-t dims."""

from typing import Any, ClassVar

import torch
from torch.distributions import Distribution, constraints

from ._random import LOG_2_PI, NO_SHAPE, as_parameters, density_dtype, log_standard_gamma, standard_normal

# From here on the asymptotic series is exact to float64.
_SERIES_FROM = 30.0


class ProductStudentT(Distribution):
    """``prod_d StudentT(z_d; df_d, loc_d, scale_d)``, the heavy-tailed prior of the decomposition paper (section 6.1).

    Args:
        df: degrees of freedom > 0; at infinity the normal distribution.
        loc: location.
        scale: scale > 0, not the standard deviation.

    Each is a number or (*batch, D), at least one a tensor with D in its last dim; event shape (D,). The mean is NaN
    where df <= 1, the variance infinite where df <= 2 and NaN where df <= 1, as in torch.distributions.StudentT.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "df": constraints.independent(constraints.positive, 1),
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True
    # what kl_terms asks about groups of dims
    independent_coordinates: ClassVar[bool] = True

    def __init__(
        self,
        df: torch.Tensor | float,
        loc: torch.Tensor | float = 0.0,
        scale: torch.Tensor | float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        self.df, self.loc, self.scale = torch.broadcast_tensors(*as_parameters(df, loc, scale))
        if self.df.dim() < 1:
            raise ValueError("df, loc or scale must have shape (..., D), got numbers only")
        super().__init__(self.df.shape[:-1], self.df.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "ProductStudentT":
        new = self._get_checked_instance(ProductStudentT, _instance)
        shape = torch.Size(batch_shape) + self.event_shape
        new.df, new.loc, new.scale = (tensor.expand(shape) for tensor in (self.df, self.loc, self.scale))
        super(ProductStudentT, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> torch.Tensor:
        return torch.where(self.df > 1, self.loc, torch.nan)

    @property
    def mode(self) -> torch.Tensor:
        return self.loc

    @property
    def variance(self) -> torch.Tensor:
        finite = self.df > 2
        df = torch.where(finite, self._finite_df(), 3.0)
        variance = torch.where(finite, self.scale**2 * (df / (df - 2)), torch.inf)
        return torch.where(self.df > 1, variance, torch.nan)

    def entropy(self) -> torch.Tensor:
        """``sum_d (df+1)/2 [psi((df+1)/2) - psi(df/2)] - [log-normaliser]``."""
        half = self._finite_df().double() / 2
        per_dim = (half + 0.5) * _digamma_half_step(half) - self._log_normaliser()
        return per_dim.sum(dim=-1).to(self.scale.dtype)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        dtype = density_dtype(value, self.scale)
        df, loc, scale = (tensor.to(dtype) for tensor in (self._finite_df(), self.loc, self.scale))
        reduced = (value.to(dtype) - loc) / scale
        size = (reduced / df.sqrt()).abs()
        # The square would overflow long before its logarithm does.
        far = size > 1e8
        near_tail = torch.log1p(torch.where(far, 1.0, size) ** 2)
        tail = torch.where(far, 2 * torch.where(far, size, 1.0).log(), near_tail)
        return (self._log_normaliser().to(dtype) - 0.5 * (df + 1) * tail).sum(dim=-1)

    def rsample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        """Samples differentiable in df, loc and scale; a generator of any device makes them repeatable."""
        shape = self._extended_shape(sample_shape)
        half = (self._finite_df().to(density_dtype(self.df)) / 2).expand(shape)
        # In logarithms: a Gamma of small shape underflows.
        log_root = 0.5 * (half.log() - log_standard_gamma(half, generator))
        return self.loc + self.scale * standard_normal(shape, self.loc, generator) * log_root.exp().to(self.loc.dtype)

    def sample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def _log_normaliser(self) -> torch.Tensor:
        """Per dim, in float64: ``lgamma((df+1)/2) - lgamma(df/2) - log(pi df)/2 - log scale``."""
        return _log_gamma_half_step(self._finite_df().double() / 2) - 0.5 * LOG_2_PI - self.scale.double().log()

    def _finite_df(self) -> torch.Tensor:
        """The degrees of freedom, at most so many that it is the normal to all digits: infinity times 0 is NaN."""
        return self.df.clamp(max=min(1e20, torch.finfo(self.df.dtype).max))


def _log_gamma_half_step(x: torch.Tensor) -> torch.Tensor:
    """``lgamma(x + 1/2) - lgamma(x) - log(x)/2`` of a float64 x; at large x the difference itself loses its digits."""
    small = x.clamp(max=_SERIES_FROM)
    exact = torch.lgamma(small + 0.5) - torch.lgamma(small) - 0.5 * small.log()
    r = 1 / x.clamp(min=_SERIES_FROM)
    q = r * r
    series = r * (-1 / 8 + q * (1 / 192 + q * (-1 / 640 + q * (17 / 14336 + q * (-31 / 18432)))))
    return torch.where(x < _SERIES_FROM, exact, series)


def _digamma_half_step(x: torch.Tensor) -> torch.Tensor:
    """``psi(x + 1/2) - psi(x)``: the derivative of the function above, plus 1/(2x)."""
    small = x.clamp(max=_SERIES_FROM)
    exact = torch.digamma(small + 0.5) - torch.digamma(small)
    r = 1 / x.clamp(min=_SERIES_FROM)
    q = r * r
    series = r / 2 + q * (1 / 8 + q * (-1 / 64 + q * (1 / 128 + q * (-17 / 2048 + q * (31 / 2048)))))
    return torch.where(x < _SERIES_FROM, exact, series)
