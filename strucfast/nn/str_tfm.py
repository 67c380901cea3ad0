"""Structural transforms: latent variables to channelwise affines, one MLP per variable."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from .. import ops
from ._checks import ACTIVATION_LAYERS, SCALE_MAPS, activation_name, one_of, positive_int, widths


class StrTfmBank(nn.Module):
    """The MLPs of d structural transforms, evaluated together.

    Variable ``i`` (k latent dims) goes through its own MLP to ``(logits, shift)``; ``scale = map(logits)``
    (SAE paper, appendix A.2.1). A fresh bank has the distribution of d separate ``nn.Linear`` stacks whose output
    biases are 0, so that scale is near 1 and shift near 0.

    Args:
        num_variables: d. latent_dim: k, dims per variable. channels: C.
        hidden: widths of the hidden layers. activation: mish, silu, relu, elu or tanh.
        scale_map: exp, exp_half, softplus_shift, sigmoid2 or one_plus.

    Parameters: ``weights.{i}`` (d, out, in) and ``biases.{i}`` (d, out), layer after layer; the last out is 2C.
    Shapes: u (N,d,k) -> scale (N,d,C), shift (N,d,C).
    """

    def __init__(
        self,
        num_variables: int,
        latent_dim: int,
        channels: int,
        hidden: Sequence[int] = (64, 64, 64),
        activation: str = "mish",
        scale_map: str = "exp",
    ) -> None:
        super().__init__()
        self.num_variables = positive_int("num_variables", num_variables)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.channels = positive_int("channels", channels)
        self.hidden = widths("hidden", hidden)
        self.activation = one_of("activation", activation, [name for name in ACTIVATION_LAYERS if name != "identity"])
        self.scale_map = one_of("scale_map", scale_map, SCALE_MAPS)
        sizes = (latent_dim, *self.hidden, 2 * channels)
        shapes = list(zip(sizes[1:], sizes[:-1]))
        self.weights = nn.ParameterList(torch.empty(num_variables, out, inp) for out, inp in shapes)
        self.biases = nn.ParameterList(torch.empty(num_variables, out) for out, _ in shapes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every variable's MLP as ``nn.Linear`` does (uniform within 1/sqrt(in)); the output bias is 0."""
        for weight, bias in zip(self.weights, self.biases):
            bound = 1.0 / math.sqrt(weight.shape[2])
            weight.uniform_(-bound, bound)
            bias.uniform_(-bound, bound)
        self.biases[-1].zero_()

    def forward(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if u.dim() != 3 or u.shape[1:] != (self.num_variables, self.latent_dim):
            expected = f"(N, {self.num_variables}, {self.latent_dim})"
            raise ValueError(f"u must have shape {expected}, got {tuple(u.shape)}")
        weights, biases = _tensors(self.weights), _tensors(self.biases)
        return ops.str_tfm(u, weights, biases, activation=self.activation, scale_map=self.scale_map)

    @classmethod
    def from_mlps(cls, mlps: Iterable[nn.Sequential], scale_map: str = "exp") -> "StrTfmBank":
        """Bank with the (copied) parameters of d equally shaped ``nn.Sequential`` (Linear, activation, ..., Linear).

        Raises:
            ValueError: no MLP, layers the bank cannot hold, or MLPs of different shape or activation.
        """
        mlps = list(mlps)
        if not mlps:
            raise ValueError("mlps must hold at least one nn.Sequential, got none")
        parsed = [_parse_mlp(i, mlp) for i, mlp in enumerate(mlps)]
        linears, activation = parsed[0]
        shapes = [tuple(linear.weight.shape) for linear in linears]
        for i, (others, other_activation) in enumerate(parsed):
            found = [tuple(linear.weight.shape) for linear in others]
            if found != shapes or other_activation != activation:
                raise ValueError(
                    f"mlps[{i}] must match mlps[0] (weights {shapes}, activation {activation}), "
                    f"got weights {found}, activation {other_activation}"
                )
        if shapes[-1][0] % 2:
            raise ValueError(f"mlps must end in an even number of outputs (scale logits, shift), got {shapes[-1][0]}")
        hidden = [out for out, _ in shapes[:-1]]
        bank = cls(len(mlps), shapes[0][1], shapes[-1][0] // 2, hidden, activation or "mish", scale_map)
        bank.to(device=linears[0].weight.device, dtype=linears[0].weight.dtype)
        with torch.no_grad():
            for layer in range(len(shapes)):
                bank.weights[layer].copy_(torch.stack([layers[layer].weight for layers, _ in parsed]))
                bank.biases[layer].copy_(torch.stack([layers[layer].bias for layers, _ in parsed]))
        return bank

    def to_mlps(self) -> list[nn.Sequential]:
        """The d MLPs as plain torch layers with copies of the parameters; their output is (scale logits, shift)."""
        mlps = []
        for variable in range(self.num_variables):
            layers: list[nn.Module] = []
            for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
                if layer > 0:
                    layers.append(ACTIVATION_LAYERS[self.activation]())
                linear = nn.Linear(weight.shape[2], weight.shape[1], device=weight.device, dtype=weight.dtype)
                with torch.no_grad():
                    linear.weight.copy_(weight[variable])
                    linear.bias.copy_(bias[variable])
                layers.append(linear)
            mlps.append(nn.Sequential(*layers))
        return mlps

    def extra_repr(self) -> str:
        return (
            f"num_variables={self.num_variables}, latent_dim={self.latent_dim}, channels={self.channels}, "
            f"hidden={self.hidden}, activation={self.activation}, scale_map={self.scale_map}"
        )


def _tensors(parameters: nn.ParameterList) -> list[torch.Tensor]:
    """``list(parameters)``, which looks every one up by its name: 11 of a call's 24 us for two lists of four."""
    held = parameters._parameters
    # Pruned or parametrized ones are not held under their own names.
    if all(key == str(i) for i, key in enumerate(held)) and len(held) == len(parameters):
        return list(held.values())
    return list(parameters)


class StrTfm(nn.Module):
    """Structural transform layer: an MLP turns one latent variable into a scale and a shift per channel of ``x``.

    ``y = scale * x + shift`` at every pixel, without normalising x (SAE paper, section 2.1 and appendix A.2.1).

    Args:
        latent_dim: k, dims of the latent variable. channels: C of ``x``.
        hidden, activation, scale_map: as :class:`StrTfmBank`.

    Shapes: x (N,C,*S) with 0 to 3 spatial dims, u (N,k) -> (N,C,*S) in x's dtype and memory format.
    """

    def __init__(
        self,
        latent_dim: int,
        channels: int,
        hidden: Sequence[int] = (64, 64, 64),
        activation: str = "mish",
        scale_map: str = "exp",
    ) -> None:
        super().__init__()
        self.bank = StrTfmBank(1, latent_dim, channels, hidden, activation, scale_map)

    @classmethod
    def from_mlp(cls, mlp: nn.Sequential, scale_map: str = "exp") -> "StrTfm":
        """Layer with the (copied) parameters of a plain ``nn.Sequential`` (Linear, activation, ..., Linear)."""
        bank = StrTfmBank.from_mlps([mlp], scale_map)
        layer = cls(bank.latent_dim, bank.channels, bank.hidden, bank.activation, scale_map)
        layer.bank = bank
        return layer

    def to_mlp(self) -> nn.Sequential:
        """The MLP as plain torch layers with copies of the parameters."""
        return self.bank.to_mlps()[0]

    def affine(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift, each (N,C), of latent variables (N,k)."""
        if u.dim() != 2 or u.shape[1] != self.bank.latent_dim:
            raise ValueError(f"u must have shape (N, {self.bank.latent_dim}), got {tuple(u.shape)}")
        scale, shift = self.bank(u.unsqueeze(1))
        return scale.squeeze(1), shift.squeeze(1)

    def forward(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        scale, shift = self.affine(u)
        return ops.modulate(x, scale, shift)


def _parse_mlp(index: int, mlp: nn.Sequential) -> tuple[list[nn.Linear], str | None]:
    """Linear layers and the one activation of an MLP; None for the activation of a single layer."""
    if not isinstance(mlp, nn.Sequential):
        raise TypeError(f"mlps[{index}] must be an nn.Sequential, got {type(mlp).__name__}")
    linears, between = list(mlp)[0::2], list(mlp)[1::2]
    names = {activation_name(layer) for layer in between}
    alternates = len(mlp) % 2 == 1 and all(isinstance(layer, nn.Linear) for layer in linears)
    if not alternates or len(names) > 1 or names & {None, "identity"}:
        raise ValueError(
            f"mlps[{index}] must alternate nn.Linear with one activation among Mish, SiLU, ReLU, ELU (alpha 1), Tanh, "
            f"got {[type(layer).__name__ for layer in mlp]}"
        )
    if any(linear.bias is None for linear in linears):
        raise ValueError(f"mlps[{index}] must have a bias in every nn.Linear, got one without")
    return linears, names.pop() if names else None
