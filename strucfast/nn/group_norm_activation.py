"""GroupNorm with the activation behind it in one kernel."""

import torch
import torch.nn.functional as F
from torch import nn

from .. import ops
from ._checks import ACTIVATION_LAYERS, one_of

_ACTIVATIONS = {"mish": F.mish, "silu": F.silu, "relu": F.relu, "elu": F.elu, "tanh": torch.tanh}


class GroupNormActivation(nn.GroupNorm):
    """``scale * act(GroupNorm(x)) + shift`` as one kernel (:func:`strucfast.ops.group_norm_modulate`).

    A :class:`torch.nn.GroupNorm` with the same parameters, state_dict keys and ``eps``, that also applies the
    activation and, where they are given, a channelwise scale and shift.

    Args:
        num_groups, num_channels, eps, affine, device, dtype: as torch's GroupNorm.
        activation: identity, mish, silu, relu, elu or tanh.

    Shapes: x (N,C,*S); scale, shift (N,C) or x's shape, or None -> x's shape, dtype and memory format. With more than
    3 spatial dims plain torch runs.

    Raises:
        ValueError: a value or a shape that does not fit. TypeError: a dtype that is not floating.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        activation: str = "mish",
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device=device, dtype=dtype)
        self.activation = one_of("activation", activation, tuple(ACTIVATION_LAYERS))

    def forward(
        self, x: torch.Tensor, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None
    ) -> torch.Tensor:
        if x.dim() > 5 and scale is None and shift is None:
            y = super().forward(x)
            return y if self.activation == "identity" else _ACTIVATIONS[self.activation](y)
        return ops.group_norm_modulate(
            x, self.num_groups, self.weight, self.bias, scale, shift, activation=self.activation, eps=self.eps
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"
