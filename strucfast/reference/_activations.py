"""Activations and scale maps by name, in plain PyTorch."""

import math

import torch
import torch.nn.functional as F

# log(e - 1): softplus of it is 1, so that a zero logit gives scale 1.
SOFTPLUS_SHIFT = math.log(math.expm1(1.0))

# The position of a name is its integer code in the op schemas and in csrc/common/activation.h.
ACTIVATIONS = ("identity", "mish", "silu", "relu", "elu", "tanh")
SCALE_MAPS = ("exp", "exp_half", "softplus_shift", "sigmoid2", "one_plus")

_ACTIVATION_FUNCTIONS = {
    "identity": lambda x: x,
    "mish": F.mish,
    "silu": F.silu,
    "relu": F.relu,
    "elu": F.elu,
    "tanh": torch.tanh,
}

_SCALE_MAP_FUNCTIONS = {
    "exp": torch.exp,
    "exp_half": lambda a: torch.exp(0.5 * a),
    "softplus_shift": lambda a: F.softplus(a + SOFTPLUS_SHIFT),
    "sigmoid2": lambda a: 2.0 * torch.sigmoid(a),
    "one_plus": lambda a: 1.0 + a,
}


def activate(x: torch.Tensor, name: str) -> torch.Tensor:
    """Apply the activation called ``name`` elementwise."""
    return _ACTIVATION_FUNCTIONS[name](x)


def map_scale(logits: torch.Tensor, name: str) -> torch.Tensor:
    """Map scale logits to scales; every map sends 0 to 1."""
    return _SCALE_MAP_FUNCTIONS[name](logits)
