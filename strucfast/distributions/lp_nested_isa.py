"""Independent subspace analysis as a distribution: the prior of the ISA-VAE."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch.distributions import Distribution, constraints

from .. import ops
from ._cdf import isa_coordinate_cdf
from ._lp import isa_constants, isa_second_moment, lp_norm, masked_power
from ._random import NO_SHAPE, as_parameters, density_dtype, filled, log_node_value, signs


class LpNestedISA(Distribution):
    """Lp-nested symmetric distribution of depth 2 whose subspaces are independent (ISA-VAE paper, equations 6 to 11).

    ``log p(z) = sum_k [ log Gamma(1 + n_k/p_k) - log Gamma(1 + n_k/p0) - n_k log(2 Gamma(1 + 1/p_k))
    - (n_k/p0) log s_k - |z_k|_{p_k}^{p0} / s_k ]`` with z_k the k-th run of ``sizes[k]`` coordinates.

    Args:
        sizes: K ints >= 1, the sizes n_k of the subspaces; event shape (n,), n = sum(sizes).
        p0: exponent of the root, > 0, shape (*batch).
        p: exponents of the subspaces, > 0, shape (*batch, K), or a scalar for all.
        scale: s_k > 0 in units of z^p0, shape (*batch, K), or a scalar for all. The standard normal is p0 = p = 2,
            scale = 2; the ISA-VAE authors' code uses 1; :func:`unit_variance_scale` gives every coordinate variance 1.

    Shapes broadcast as torch.distributions' do. ``log_prob`` of unbatched parameters runs through
    :func:`strucfast.ops.lp_nested_log_prob`. Sampling is exact (Algorithm 1 in a form that neither over- nor
    underflows) and differentiable in p0, p and scale, as accurately as torch differentiates Gamma samples (1e-3
    relative). A subspace of one coordinate does not depend on its p.

    Raises:
        ValueError: a size < 1; p or scale whose last dim is not K; with ``validate_args``, an exponent or scale that is
            not > 0.
        TypeError: sizes that are not ints.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "p0": constraints.positive,
        "p": constraints.independent(constraints.positive, 1),
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        sizes: Sequence[int],
        p0: torch.Tensor | float,
        p: torch.Tensor | float,
        scale: torch.Tensor | float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        self.sizes = check_sizes(sizes)
        p0, p, scale = as_parameters(p0, p, scale)
        count = len(self.sizes)
        for name, value in (("p", p), ("scale", scale)):
            if value.dim() and value.shape[-1] not in (1, count):
                raise ValueError(
                    f"{name} must be a scalar or have one entry for each of the {count} subspaces in its last dim,"
                    f" got shape {tuple(value.shape)}"
                )
        batch_shape = torch.broadcast_shapes(p0.shape, p.shape[:-1], scale.shape[:-1])
        self.p0 = p0.expand(batch_shape)
        self.p = p.expand(*batch_shape, count)
        self.scale = scale.expand(*batch_shape, count)
        # What the fused op takes; expand() keeps it.
        self._unbatched = None if batch_shape else (self.p0, self.p, self.scale)
        super().__init__(batch_shape, torch.Size((sum(self.sizes),)), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "LpNestedISA":
        new = self._get_checked_instance(LpNestedISA, _instance)
        batch_shape = torch.Size(batch_shape)
        new.sizes, new._unbatched = self.sizes, self._unbatched
        new.p0 = self.p0.expand(batch_shape)
        new.p = self.p.expand(batch_shape + self.p.shape[-1:])
        new.scale = self.scale.expand(batch_shape + self.scale.shape[-1:])
        super(LpNestedISA, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> torch.Tensor:
        return self.scale.new_zeros(self._extended_shape())

    @property
    def mode(self) -> torch.Tensor:
        return self.mean

    @property
    def variance(self) -> torch.Tensor:
        """E z_j^2, (*batch, n)."""
        return self._per_coordinate(isa_second_moment(self.sizes, self.p0, self.p, self.scale)).to(self.p.dtype)

    def entropy(self) -> torch.Tensor:
        constants = isa_constants(self.sizes, self.p0, self.p, self.scale).sum(dim=-1)
        return (sum(self.sizes) / self.p0.double() - constants).to(self.p.dtype)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """(*sample, *batch) of value (*sample, *batch, n)."""
        if self._validate_args:
            self._validate_sample(value)
        if self._unbatched is not None:
            shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
            log_prob = ops.lp_nested_log_prob(value.reshape(-1, value.shape[-1]), self.sizes, *self._unbatched)
            return log_prob.reshape(value.shape[:-1]).expand(shape)
        dtype = density_dtype(value, self.p)
        p0, p, scale = (parameter.to(dtype) for parameter in (self.p0, self.p, self.scale))
        norms = lp_norm(self._padded(value.to(dtype).abs()), p)
        constants = isa_constants(self.sizes, self.p0, self.p, self.scale).sum(dim=-1).to(dtype)
        return constants - (masked_power(norms, p0[..., None]) / scale).sum(dim=-1)

    def coordinate_cdf(self, value: torch.Tensor) -> torch.Tensor:
        """P(z_j <= value_j) of each coordinate by itself, (*sample, *batch, n) like value.

        By quadrature in float64 with 769 points per value: for checks and plots, not for training. The
        coordinates of a subspace are dependent, so this says nothing of them jointly. No gradient to p0 and p.
        """
        if self._validate_args:
            self._validate_sample(value)
        # One pass over the coordinates of each subspace, so that memory follows the value and not all coordinates.
        parts = []
        for k, part in enumerate(value.split(self.sizes, dim=-1)):
            n = torch.tensor(float(self.sizes[k]), dtype=torch.float64, device=value.device)
            p0, p, scale = (q.detach()[..., None] for q in (self.p0, self.p[..., k], self.scale[..., k]))
            parts.append(isa_coordinate_cdf(part, n, p0, p, scale))
        return torch.cat(parts, dim=-1).to(density_dtype(value, self.p))

    def cdf(self, value: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("the joint distribution function has no closed form: see coordinate_cdf")

    def rsample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        """Exact samples (*sample, *batch, n); a generator of any device makes them repeatable."""
        shape = self._extended_shape(sample_shape)
        rows = shape[:-1] + torch.Size((len(self.sizes),))
        width = max(self.sizes)
        padded = rows + torch.Size((width,))
        p0, p, scale = self.p0[..., None], self.p, self.scale
        n = filled(self.sizes, p)
        log_radius = log_node_value(n, p0.expand(rows), generator) + scale.log() / p0
        leaf_p = p[..., None].expand(padded)
        log_leaf = log_node_value(1, leaf_p, generator)
        outside = torch.arange(width, device=p.device) >= n[:, None]
        powers = torch.where(outside, -math.inf, log_leaf * leaf_p)
        log_size = log_radius[..., None] + log_leaf - (torch.logsumexp(powers, dim=-1) / p)[..., None]
        size = torch.cat([log_size[..., k, :count] for k, count in enumerate(self.sizes)], dim=-1).exp()
        return (size * signs(shape, size, generator)).to(p.dtype)

    def sample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def _per_coordinate(self, per_subspace: torch.Tensor) -> torch.Tensor:
        """(...,K) -> (...,n)."""
        parts = [per_subspace[..., k, None].expand(*self.batch_shape, size) for k, size in enumerate(self.sizes)]
        return torch.cat(parts, dim=-1)

    def _padded(self, value: torch.Tensor) -> torch.Tensor:
        """(...,n) -> (...,K,max n_k), filled with zeros, which change no norm."""
        width = max(self.sizes)
        parts = [
            torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in value.split(self.sizes, dim=-1)
        ]
        return torch.stack(parts, dim=-2)


def unit_variance_scale(
    sizes: Sequence[int], p0: torch.Tensor | float, p: torch.Tensor | float
) -> torch.Tensor:
    """The scales (...,K) that give every coordinate of :class:`LpNestedISA` variance 1; differentiable in p0 and p."""
    sizes = check_sizes(sizes)
    p0, p = as_parameters(p0, p)
    p = p.expand(*torch.broadcast_shapes(p0.shape, p.shape[:-1]), len(sizes))
    variance = isa_second_moment(sizes, p0.double(), p.double(), torch.ones_like(p, dtype=torch.float64))
    return variance.pow(-p0.double()[..., None] / 2).to(p.dtype)


def check_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes of subspaces as a tuple of ints >= 1."""
    if isinstance(sizes, (str, int)):
        raise TypeError(f"sizes must be a sequence of ints, got {sizes!r}")
    sizes = tuple(sizes)
    if not sizes:
        raise ValueError("sizes must name at least one subspace, got none")
    for index, size in enumerate(sizes):
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"sizes[{index}] must be an int, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"sizes[{index}] must be >= 1, got {size}")
    return sizes
