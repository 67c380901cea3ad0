"""Argument checks the losses share; each names the argument, what was expected and what came."""

import contextlib
import math
import operator
from collections.abc import Sequence

import torch
from torch.distributions import Distribution

from ..distributions.priors import Prior


def floating(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` if it is floating point."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    return tensor


def points(name: str, tensor: torch.Tensor, dims: int | None = None) -> torch.Tensor:
    """Return ``tensor`` if it is floating point, of shape (N, D) with N >= 1 and D = ``dims`` if that is given."""
    floating(name, tensor)
    if tensor.dim() != 2 or tensor.shape[0] == 0 or (dims is not None and tensor.shape[1] != dims):
        expected = "D" if dims is None else dims
        raise ValueError(f"{name} must have shape (N, {expected}) with N >= 1, got {tuple(tensor.shape)}")
    return tensor


def posterior(mean: torch.Tensor, logvar: torch.Tensor) -> None:
    """Check that ``mean`` and ``logvar`` describe N >= 1 diagonal Gaussians."""
    floating("mean", mean)
    floating("logvar", logvar)
    if mean.dim() != 2 or mean.shape != logvar.shape:
        shapes = f"{tuple(mean.shape)} and {tuple(logvar.shape)}"
        raise ValueError(f"mean and logvar must have the same shape (N, D), got {shapes}")
    points("mean", mean)


def latent_groups(groups: Sequence[Sequence[int]], dims: int, *, cover: bool = False) -> tuple[tuple[int, ...], ...]:
    """Return ``groups`` as tuples if they are disjoint, non-empty lists of latent dims; ``cover``: of all of them."""
    try:
        checked = tuple(tuple(operator.index(dim) for dim in group) for group in groups)
    except TypeError as error:
        raise TypeError(f"groups must be lists of ints, got {groups!r}") from error
    seen: set[int] = set()
    for number, group in enumerate(checked):
        if not group:
            raise ValueError(f"groups[{number}] must hold at least one latent dim, got none")
        for dim in group:
            if not 0 <= dim < dims:
                raise ValueError(f"groups[{number}] must hold latent dims from 0 to {dims - 1}, got {dim}")
            if dim in seen:
                raise ValueError(f"groups must not overlap, got latent dim {dim} twice")
            seen.add(dim)
    if cover and len(seen) < dims:
        missing = min(set(range(dims)) - seen)
        raise ValueError(f"groups must leave no latent dim out, got none with {missing}")
    return checked


def as_distribution(prior: Distribution | Prior | None) -> Distribution | None:
    """The distribution that a prior module is at present; anything else as it is."""
    return prior() if isinstance(prior, Prior) else prior


def prior_log_prob(prior: Distribution | None, z: torch.Tensor) -> torch.Tensor:
    """Log-density (N,) of z (N,D) under a prior, None for N(0, I), if it is one number per row."""
    if prior is None:
        return -0.5 * (z * z + math.log(2 * math.pi)).sum(dim=1)
    log_prob = prior.log_prob(z)
    if log_prob.shape != z.shape[:1]:
        expected = f"{tuple(z.shape[:1])}, one per row of z"
        raise ValueError(f"prior.log_prob must have shape {expected}, got {tuple(log_prob.shape)}")
    return log_prob


def loss_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """The type a loss of these is computed in: float64 if one of them is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def no_autocast(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """A context in which autocast changes nothing on the tensor's device."""
    kind = tensor.device.type
    # Entering and leaving torch.autocast takes longer than a small loss.
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()
