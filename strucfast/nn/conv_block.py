"""The convolution block of the SAE backbone with a fused epilogue."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from .. import ops
from ._checks import ACTIVATION_LAYERS, one_of, positive_int


class ConvBlock(nn.Module):
    """[bilinear x2 upsampling] -> convolution -> [2x2 max-pool] -> GroupNorm -> activation -> [channelwise affine].

    GroupNorm, activation and the affine of the structural transform that follows the block run as one kernel
    (:func:`strucfast.ops.group_norm_modulate`). The block is the one of the SAE paper, appendix A.2.1.

    Args:
        in_channels, out_channels: channels of the convolution.
        kernel_size: odd; the padding keeps the image size. upsample: double the image size before the convolution.
        pool: halve it after the convolution. num_groups: groups of the normalisation, a divisor of out_channels.
        activation: identity, mish, silu, relu, elu or tanh. eps: inside the root of the normalisation.

    Parameters: ``conv.weight, conv.bias, norm.weight, norm.bias``, the keys and shapes of the plain layers of
    :meth:`to_torch`, so that a state_dict loads both ways. They are kept in channels_last, and so is every activation.

    Shapes: x (N,in,H,W), scale and shift (N,out) -> (N,out,H',W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        upsample: bool = False,
        pool: bool = False,
        num_groups: int = 8,
        activation: str = "mish",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        positive_int("in_channels", in_channels)
        positive_int("out_channels", out_channels)
        if positive_int("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if out_channels % positive_int("num_groups", num_groups):
            raise ValueError(f"num_groups must divide out_channels = {out_channels}, got {num_groups}")
        self.upsample, self.pool = bool(upsample), bool(pool)
        self.activation = one_of("activation", activation, tuple(ACTIVATION_LAYERS))
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = nn.GroupNorm(num_groups, out_channels, eps)
        # The weight's layout decides the layout of the output, whatever layout the input has.
        self.conv.to(memory_format=torch.channels_last)

    def forward(
        self, x: torch.Tensor, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None
    ) -> torch.Tensor:
        if x.dim() != 4 or x.shape[1] != self.conv.in_channels:
            raise ValueError(f"x must have shape (N, {self.conv.in_channels}, H, W), got {tuple(x.shape)}")
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.conv(x)
        if self.pool:
            x = F.max_pool2d(x, 2)
        norm = self.norm
        return ops.group_norm_modulate(
            x, norm.num_groups, norm.weight, norm.bias, scale, shift, activation=self.activation, eps=norm.eps
        )

    @classmethod
    def from_torch(
        cls,
        conv: nn.Conv2d,
        norm: nn.GroupNorm,
        *,
        upsample: bool = False,
        pool: bool = False,
        activation: str = "mish",
    ) -> "ConvBlock":
        """Block with the (copied) parameters of a plain convolution and the GroupNorm that follows it.

        Raises:
            ValueError: a convolution that the block cannot stand for (stride, dilation, groups, padding, no bias,
                non-square kernel), or a norm without affine parameters or of another width.
        """
        size = conv.kernel_size[0]
        plain = (
            conv.kernel_size == (size, size)
            and conv.stride == (1, 1)
            and conv.dilation == (1, 1)
            and conv.groups == 1
            and conv.padding in ((size // 2, size // 2), "same")
            and conv.padding_mode == "zeros"
            and conv.bias is not None
        )
        if not plain:
            raise ValueError(f"conv must be square, stride 1, zero-padded to keep the size, with bias, got {conv}")
        if not norm.affine or norm.num_channels != conv.out_channels:
            raise ValueError(f"norm must be an affine GroupNorm over {conv.out_channels} channels, got {norm}")
        block = cls(
            conv.in_channels,
            conv.out_channels,
            kernel_size=size,
            upsample=upsample,
            pool=pool,
            num_groups=norm.num_groups,
            activation=activation,
            eps=norm.eps,
        )
        block.to(device=conv.weight.device, dtype=conv.weight.dtype)
        block.conv.load_state_dict(conv.state_dict())
        block.norm.load_state_dict(norm.state_dict())
        return block

    def to_torch(self) -> nn.Sequential:
        """The same block as plain torch layers with copies of the parameters (no affine after the activation)."""
        own, groups = self.conv, self.norm
        like = {"device": own.weight.device, "dtype": own.weight.dtype}
        conv = nn.Conv2d(own.in_channels, own.out_channels, own.kernel_size, padding=own.padding, **like)
        norm = nn.GroupNorm(groups.num_groups, groups.num_channels, groups.eps, **like)
        conv.load_state_dict(own.state_dict())
        norm.load_state_dict(groups.state_dict())
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if self.upsample:
            layers["upsample"] = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        layers["conv"] = conv
        if self.pool:
            layers["pool"] = nn.MaxPool2d(2)
        layers["norm"] = norm
        layers["activation"] = ACTIVATION_LAYERS[self.activation]()
        return nn.Sequential(layers)

    def extra_repr(self) -> str:
        return f"upsample={self.upsample}, pool={self.pool}, activation={self.activation}"
