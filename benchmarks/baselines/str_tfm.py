"""What the fused Str-Tfm bank is measured against: a loop of MLP modules, and one batched matrix product per layer."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

_ACTIVATION_MODULES = {"mish": nn.Mish, "silu": nn.SiLU, "relu": nn.ReLU, "elu": nn.ELU, "tanh": nn.Tanh}
_ACTIVATION_FUNCTIONS = {"mish": F.mish, "silu": F.silu, "relu": F.relu, "elu": F.elu, "tanh": torch.tanh}


class LoopStrTfm(nn.Module):
    """d separate MLPs called one after the other, as structural decoders written in plain PyTorch do.

    ``forward(u)`` takes ``u`` (N, d, k) and returns d pairs (scale, shift), each (N, C): every rung uses its own pair,
    so nothing is stacked. ``widths`` is (k, hidden..., 2C); the scale map is exp.
    """

    def __init__(self, num_variables: int, widths: Sequence[int], activation: str = "mish") -> None:
        super().__init__()
        self.mlps = nn.ModuleList()
        for _ in range(num_variables):
            layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
            for fan_in, fan_out in pairwise(widths[1:]):
                layers += [_ACTIVATION_MODULES[activation](), nn.Linear(fan_in, fan_out)]
            self.mlps.append(nn.Sequential(*layers))

    def forward(self, u: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        pairs = []
        for variable, mlp in enumerate(self.mlps):
            logits, shift = mlp(u[:, variable]).chunk(2, dim=-1)
            pairs.append((logits.exp(), shift))
        return pairs

    @staticmethod
    def together(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        """What ``forward`` returns as scale, shift (N, d, C), to compare values."""
        return [torch.stack(part, dim=1) for part in zip(*pairs)]

    def stacked(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The parameters as the batched forms take them: weights[i] (d, out, in), biases[i] (d, out)."""
        linears = [[layer for layer in mlp if isinstance(layer, nn.Linear)] for mlp in self.mlps]
        weights = [torch.stack([layer.weight.detach() for layer in same]) for same in zip(*linears)]
        biases = [torch.stack([layer.bias.detach() for layer in same]) for same in zip(*linears)]
        return weights, biases


def bmm_str_tfm(
    u: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], *, activation: str = "mish"
) -> tuple[torch.Tensor, torch.Tensor]:
    """All d MLPs with one ``torch.baddbmm`` per layer: u (N, d, k) -> scale, shift (d, N, C), scale map exp."""
    hidden = u.transpose(0, 1)
    for layer, (weight, bias) in enumerate(zip(weights, biases)):
        if layer > 0:
            hidden = _ACTIVATION_FUNCTIONS[activation](hidden)
        hidden = torch.baddbmm(bias.unsqueeze(1), hidden, weight.transpose(1, 2))
    logits, shift = hidden.chunk(2, dim=-1)
    return logits.exp(), shift
