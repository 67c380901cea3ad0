"""Feature-wise linear modulation."""

import torch
from torch import nn

from .. import ops
from ._checks import positive_int


class FiLM(nn.Module):
    """Feature-wise linear modulation: a linear layer maps a condition to a scale and a shift per channel.

    ``y = (1 + g) * x + b`` with ``(g, b) = Linear(condition)`` (Perez et al. 2018, equation 2; the 1 is their
    section 7.2, it keeps a fresh layer near the identity).

    Args:
        condition_dim: number of features K of the condition.
        channels: number of channels C of ``x``.

    Shapes: x (N,C,*S) with 0 to 3 spatial dims, condition (N,K) -> (N,C,*S) in x's dtype and memory format.

    Raises:
        ValueError: a shape that does not fit. TypeError: a dtype that is not floating.
    """

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.condition_dim = positive_int("condition_dim", condition_dim)
        self.channels = positive_int("channels", channels)
        self.linear = nn.Linear(condition_dim, 2 * channels)

    def affine(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift, each (N,C), of a condition (N,K)."""
        if condition.dim() != 2 or condition.shape[1] != self.condition_dim:
            raise ValueError(f"condition must have shape (N, {self.condition_dim}), got {tuple(condition.shape)}")
        gain, shift = self.linear(condition).chunk(2, dim=1)
        # Beside 1, a half type would keep only two or three digits of the gain.
        return 1.0 + gain.to(torch.promote_types(gain.dtype, torch.float32)), shift

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift = self.affine(condition)
        return ops.modulate(x, scale, shift)

    def extra_repr(self) -> str:
        return f"condition_dim={self.condition_dim}, channels={self.channels}"
