"""Lp-nested symmetric distributions of any tree."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributions import Distribution, Gamma, LogNormal, constraints

from ._lp import log_ratio_moment, lp_norm, masked_power
from ._random import (
    NO_SHAPE,
    as_parameters,
    density_dtype,
    foreign_draw,
    log_child_values,
    log_node_value,
    signs,
)


@dataclass(frozen=True)
class Node:
    """An inner node: the coordinates and the inner nodes below it, its number in pre-order, its number of leaves."""

    index: int
    leaves: tuple[int, ...]
    children: tuple["Node", ...]
    size: int

    def child_sizes(self) -> list[int]:
        """Leaves below each child, the leaves first."""
        return [1] * len(self.leaves) + [child.size for child in self.children]

    def walk(self) -> "list[Node]":
        """Itself and all inner nodes below, in pre-order."""
        return [self, *(node for child in self.children for node in child.walk())]


class LpNested(Distribution):
    """Lp-nested symmetric distribution (ISA-VAE paper, equations 5 to 8 and Algorithm 1).

    The density depends on z through f(z) alone: a leaf's value is |z_j|, that of an inner node
    ``v_i = (sum_k v_ik^p_i)^(1/p_i)`` over its children, f the root's.
    ``p(z) = g(f) / (f^(n-1) S)`` with the density g of the radius and S the derivative of the volume of {f <= r} at 1.

    Args:
        tree: inner nodes ``{"p": exponent, "children": [...]}``, leaves the coordinates 0..n-1 as ints, each once. An
            exponent is a number or a tensor of the batch shape, > 0, which may require a gradient. Event shape (n,).
        scale: s > 0, batch shape: the radius of independent subspaces, ``f^p0/s`` ~ Gamma(n/p0, 1) (equation 11), which
            makes the root's children independent. Default 1.
        radial: any distribution on (0, inf) with event shape () for f(z) instead; not together with scale.

    ``p`` are the exponents in pre-order, (*batch, I). Sampling is exact; with the radius of equation 11, or a radial
    with rsample, differentiable in every exponent. Gradients at zeros are 0 where the derivative is one-sided or
    infinite. For trees of depth 2 :class:`LpNestedISA` is faster and has one scale per subspace.

    Raises:
        TypeError: a node that is neither an int nor such a mapping; a radial that is no distribution.
        ValueError: children missing, coordinates that are not 0..n-1 once each; with ``validate_args``, an exponent or
            a scale that is not > 0.
    """

    support = constraints.real_vector

    def __init__(
        self,
        tree: Mapping[str, Any],
        scale: torch.Tensor | float | None = None,
        radial: Distribution | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if radial is not None and scale is not None:
            raise ValueError("scale and radial exclude each other: a radial has a scale of its own")
        exponents: list[torch.Tensor | float] = []
        self.root = _parse(tree, exponents)
        n = self.root.size
        found = sorted(leaf for node in self.root.walk() for leaf in node.leaves)
        if found != list(range(n)):
            raise ValueError(f"the leaves of tree must be the coordinates 0 to {n - 1}, each once, got {found}")
        if radial is None:
            *exponents, self.scale = as_parameters(*exponents, 1.0 if scale is None else scale)
            below = self.scale.shape
        else:
            if not isinstance(radial, Distribution):
                raise TypeError(f"radial must be a torch Distribution, got {type(radial).__name__}")
            if radial.event_shape:
                raise ValueError(f"radial must have event shape (), got {tuple(radial.event_shape)}")
            exponents, self.scale, below = as_parameters(*exponents), None, radial.batch_shape
        self.p = torch.stack(torch.broadcast_tensors(*exponents), dim=-1)
        batch_shape = torch.broadcast_shapes(self.p.shape[:-1], below)
        self._expand_parameters(self, radial, batch_shape)
        super().__init__(batch_shape, torch.Size((n,)), validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        known = {"p": constraints.independent(constraints.positive, 1)}
        return known if self.radial is not None else {**known, "scale": constraints.positive}

    @property
    def has_rsample(self) -> bool:
        return self.radial is None or self.radial.has_rsample

    def expand(self, batch_shape, _instance=None) -> "LpNested":
        new = self._get_checked_instance(LpNested, _instance)
        new.root = self.root
        new._expand_parameters(self, self.radial, torch.Size(batch_shape))
        super(LpNested, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> torch.Tensor:
        return self.p.new_zeros(self._extended_shape())

    @property
    def mode(self) -> torch.Tensor:
        if self.radial is not None:
            raise NotImplementedError("the mode depends on the radial density in no closed form")
        return self.mean

    @property
    def variance(self) -> torch.Tensor:
        """E z_j^2, (*batch, n)."""
        n, p0 = self.root.size, self._exponent(self.root).double()
        if self.radial is None:
            radius = self.scale.double().log() * 2 / p0 + torch.lgamma((n + 2) / p0) - torch.lgamma(n / p0)
        else:
            radius = (self.radial.variance.double() + self.radial.mean.double() ** 2).log()
        moments: dict[int, torch.Tensor] = {}

        def visit(node: Node, above: torch.Tensor) -> None:
            p = self._exponent(node).double()
            for leaf in node.leaves:
                moments[leaf] = above + log_ratio_moment(1, node.size, p, 2)
            for child in node.children:
                visit(child, above + log_ratio_moment(child.size, node.size, p, 2))

        visit(self.root, radius)
        return torch.stack([moments[j] for j in range(n)], dim=-1).exp().to(self.p.dtype)

    def entropy(self) -> torch.Tensor:
        """(*batch,); with a radial that of it, if it is a Gamma or a LogNormal."""
        if self.radial is not None:
            surface = self._log_volume() + math.log(self.root.size)
            spread = (self.root.size - 1) * _mean_log(self.radial)
            return (self.radial.entropy() + spread + surface).to(self.p.dtype)
        n, p0 = self.root.size, self._exponent(self.root).double()
        return (n / p0 - self._log_normaliser()).to(self.p.dtype)

    @property
    def log_volume(self) -> torch.Tensor:
        """log of the volume of {f <= 1}, (*batch,)."""
        return self._log_volume().to(self.p.dtype)

    @property
    def log_surface(self) -> torch.Tensor:
        """log of d/dr volume{f <= r} at r = 1 (equation 8), which is not the Euclidean surface area; (*batch,)."""
        return (self._log_volume() + math.log(self.root.size)).to(self.p.dtype)

    def radius(self, value: torch.Tensor) -> torch.Tensor:
        """f(z), (*sample, *batch) of value (*sample, *batch, n)."""
        dtype = density_dtype(value, self.p)
        return lp_norm(self._child_values(self.root, value.to(dtype).abs()), self._exponent(self.root).to(dtype))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """(*sample, *batch) of value (*sample, *batch, n)."""
        if self._validate_args:
            self._validate_sample(value)
        dtype = density_dtype(value, self.p)
        if self.radial is None:
            below = self._child_values(self.root, value.to(dtype).abs())
            powers = masked_power(below, self._exponent(self.root).to(dtype)[..., None])
            return self._log_normaliser().to(dtype) - powers.sum(dim=-1) / self.scale.to(dtype)
        # At 0 the limit: both terms may be infinite.
        radius = self.radius(value).clamp(min=torch.finfo(dtype).tiny)
        surface = self._log_volume().to(dtype) + math.log(self.root.size)
        return self.radial.log_prob(radius) - (self.root.size - 1) * radius.log() - surface

    def rsample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        """Exact samples (*sample, *batch, n); a generator of any device makes them repeatable.

        Without gradient through the radius where the radial has no rsample.
        """
        shape = self._extended_shape(sample_shape)
        rows = shape[:-1]
        p0 = self._exponent(self.root)
        if self.radial is None:
            below = [
                log_node_value(size, p0.expand(rows), generator) + self.scale.log() / p0
                for size in self.root.child_sizes()
            ]
            log_children = torch.stack(below, dim=-1)
        else:
            log_radius = foreign_draw(self.radial, torch.Size(sample_shape), p0.device, generator).log()
            log_children = log_radius[..., None] + log_child_values(
                self.root.child_sizes(), p0.expand(rows), generator
            )
        log_size: dict[int, torch.Tensor] = {}

        def visit(node: Node, below: torch.Tensor) -> None:
            log_size.update(zip(node.leaves, below.unbind(dim=-1), strict=False))
            for child, log_value in zip(node.children, below.unbind(dim=-1)[len(node.leaves) :], strict=True):
                p = self._exponent(child).expand(rows)
                visit(child, log_value[..., None] + log_child_values(child.child_sizes(), p, generator))

        visit(self.root, log_children)
        size = torch.stack([log_size[j] for j in range(self.root.size)], dim=-1).exp()
        return (size * signs(shape, size, generator)).to(self.p.dtype)

    def sample(self, sample_shape=NO_SHAPE, generator: torch.Generator | None = None) -> torch.Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def _expand_parameters(self, source: "LpNested", radial: Distribution | None, batch_shape: torch.Size) -> None:
        self.p = source.p.expand(batch_shape + source.p.shape[-1:])
        self.scale = None if source.scale is None else source.scale.expand(batch_shape)
        self.radial = None if radial is None else radial.expand(batch_shape)

    def _exponent(self, node: Node) -> torch.Tensor:
        return self.p[..., node.index]

    def _child_values(self, node: Node, size: torch.Tensor) -> torch.Tensor:
        """Values of a node's children, (..., l), leaves first."""
        batch = torch.broadcast_shapes(size.shape[:-1], self.batch_shape)
        values = [size[..., list(node.leaves)].expand(*batch, len(node.leaves))]
        for child in node.children:
            value = lp_norm(self._child_values(child, size), self._exponent(child).to(size.dtype))
            values.append(value.expand(batch)[..., None])
        return torch.cat(values, dim=-1)

    def _log_volume(self) -> torch.Tensor:
        """In float64: float32 loses five digits of a difference of log-gammas already at 64 dims."""
        total = self.root.size * math.log(2) + torch.zeros(self.batch_shape, dtype=torch.float64, device=self.p.device)
        for node in self.root.walk():
            p = self._exponent(node).double()
            total = total - torch.lgamma(1 + node.size / p)
            total = total + sum(torch.lgamma(1 + size / p) for size in node.child_sizes())
        return total

    def _log_normaliser(self) -> torch.Tensor:
        n, p0 = self.root.size, self._exponent(self.root).double()
        return -torch.lgamma(1 + n / p0) - n / p0 * self.scale.double().log() - self._log_volume()


def _mean_log(radial: Distribution) -> torch.Tensor:
    if isinstance(radial, Gamma):
        return torch.digamma(radial.concentration) - radial.rate.log()
    if isinstance(radial, LogNormal):
        return radial.loc
    raise NotImplementedError(f"the entropy needs E log f, in closed form for Gamma and LogNormal only, got {radial}")


def _parse(tree: Any, exponents: list[torch.Tensor | float]) -> Node:
    """An inner node of the nested description; its exponent and those below are appended in pre-order."""
    if not isinstance(tree, Mapping) or set(tree) != {"p", "children"}:
        raise TypeError(f"an inner node of tree must be {{'p': exponent, 'children': [...]}}, got {tree!r}")
    if isinstance(tree["children"], (str, Mapping)) or not tree["children"]:
        raise ValueError(f"children must be a sequence of at least one node, got {tree['children']!r}")
    index = len(exponents)
    exponents.append(tree["p"])
    leaves, children = [], []
    for child in tree["children"]:
        if isinstance(child, int) and not isinstance(child, bool):
            leaves.append(child)
        else:
            children.append(_parse(child, exponents))
    return Node(index, tuple(leaves), tuple(children), len(leaves) + sum(child.size for child in children))
