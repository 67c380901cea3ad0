"""Adaptive instance normalisation."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from .. import ops
from ._checks import one_of, positive_int, widths

_ACTIVATIONS = ("identity", "relu")


class AdaIN(nn.Module):
    """Adaptive instance normalisation: a linear layer maps a style to the scale and shift of normalised features.

    ``y = act(1 + g) * (x - mean) / sqrt(var + eps) + act(b)`` with ``(g, b) = Linear(style)``, mean and biased variance
    over the pixels of each sample and channel (Huang and Belongie 2017, equation 8, with a learnt scale and shift as in
    "Multi-Stage VAE", section 3.2). The bias of the linear layer starts at 0, so that a zero style gives the plain
    instance norm and a fresh layer stays near it. The 1 only moves the origin of a bias: with "relu" the scale is that
    of a dense layer with ReLU whose bias starts at 1, so that no channel or pixel is born dead.

    Args:
        channels: number of channels C of ``x``.
        style_dim: number of features K of the style.
        per_pixel_shape: None for one scale and shift per channel, or the spatial sizes of ``x``, (H, W) for images, for
            one scale and shift per channel and pixel (the "Multi-Stage VAE" authors' code, with activation "relu" and
            eps 1e-6); 2 * C * H * W outputs.
        activation: "identity" or "relu", applied to the scale and to the shift.
        eps: added to the variance inside the root, finite and >= 0.

    Shapes: x (N,C,*S) with 0 to 3 spatial dims, style (N,K) -> (N,C,*S) in x's dtype and memory format.

    Raises:
        ValueError: a shape or a value that does not fit. TypeError: a dtype that is not floating, a size that is no
            int.
    """

    def __init__(
        self,
        channels: int,
        style_dim: int,
        *,
        per_pixel_shape: Sequence[int] | None = None,
        activation: str = "identity",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.channels = positive_int("channels", channels)
        self.style_dim = positive_int("style_dim", style_dim)
        self.per_pixel_shape = None if per_pixel_shape is None else widths("per_pixel_shape", per_pixel_shape)
        if self.per_pixel_shape is not None and not 1 <= len(self.per_pixel_shape) <= 3:
            raise ValueError(f"per_pixel_shape must have 1 to 3 sizes, got {self.per_pixel_shape}")
        self.activation = one_of("activation", activation, _ACTIVATIONS)
        if not 0.0 <= eps < math.inf:
            raise ValueError(f"eps must be finite and >= 0, got {eps}")
        self.eps = float(eps)
        self.linear = nn.Linear(style_dim, 2 * channels * math.prod(self.per_pixel_shape or ()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The linear layer's usual weights, and a bias of 0: the plain instance norm at a zero style."""
        self.linear.reset_parameters()
        nn.init.zeros_(self.linear.bias)

    def affine(self, style: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift of a style (N,K), each (N,C), or (N,C,*S) per pixel."""
        if style.dim() != 2 or style.shape[1] != self.style_dim:
            raise ValueError(f"style must have shape (N, {self.style_dim}), got {tuple(style.shape)}")
        table = self.linear(style).unflatten(1, (2, self.channels, *(self.per_pixel_shape or ())))
        gain, shift = table.unbind(1)
        # Beside 1, a half type would keep only two or three digits of the gain.
        scale = 1.0 + gain.to(torch.promote_types(gain.dtype, torch.float32))
        return (torch.relu(scale), torch.relu(shift)) if self.activation == "relu" else (scale, shift)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        scale, shift = self.affine(style)
        return ops.adain(x, scale, shift, eps=self.eps)

    def extra_repr(self) -> str:
        per_pixel = "" if self.per_pixel_shape is None else f", per_pixel_shape={self.per_pixel_shape}"
        activation = "" if self.activation == "identity" else f", activation={self.activation!r}"
        return f"channels={self.channels}, style_dim={self.style_dim}{per_pixel}{activation}, eps={self.eps:g}"
