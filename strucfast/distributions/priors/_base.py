"""What every prior is: a module that returns a distribution over codes."""

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.distributions import Distribution

from .._random import density_dtype, draw


class Prior(nn.Module, ABC):
    """A distribution over codes with parameters that move, save and, where asked for, learn with a model.

    ``forward()`` returns the torch distribution (event shape (D,)) of the present parameters, without checking them
    again. Parameters that are not learnt are buffers.

    Attributes:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)

    @abstractmethod
    def forward(self) -> Distribution:
        """The distribution, event shape (D,)."""

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """Log-density (N,) of codes z (N,D), float32 for half types."""
        if z.dim() < 1 or z.shape[-1] != self.dim:
            raise ValueError(f"z must have shape (N, {self.dim}), got {tuple(z.shape)}")
        return self().log_prob(z.to(density_dtype(z)) if z.is_floating_point() else z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw n codes (n,D) without gradient, on the prior's device and in its dtype.

        A generator, of any device, makes them repeatable and leaves torch's global one as it is.
        """
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n must be an int, got {type(n).__name__}")
        if n < 0:
            raise ValueError(f"n must be >= 0, got {n}")
        with torch.no_grad():
            return draw(self(), n, generator)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def positive_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
    return value


def positive_parameter(name: str, value: object, *shape: int) -> torch.Tensor:
    """A number, or numbers of the given shape, all finite and > 0, as a float32 tensor of that shape on the CPU."""
    tensor = cpu_tensor(value)
    if tensor.shape not in (torch.Size(()), torch.Size(shape)):
        raise ValueError(f"{name} must be a number or have shape {shape}, got shape {tuple(tensor.shape)}")
    if not bool(((tensor > 0) & tensor.isfinite()).all()):
        raise ValueError(f"{name} must be finite and > 0, got {value}")
    return tensor.expand(shape).clone()


def cpu_tensor(value: object) -> torch.Tensor:
    """float32 and on the CPU, whatever the default device is: values are checked there before :func:`placed`."""
    return torch.as_tensor(value, dtype=torch.float32, device="cpu").detach().clone()


def placed(tensor: torch.Tensor) -> torch.Tensor:
    """On the default device, "meta" included, where a module's parameters belong."""
    return tensor.to(torch.get_default_device())
