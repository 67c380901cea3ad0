"""Argument checks the modules share; each names the argument, what was expected and what came."""

from collections.abc import Sequence

from torch import nn

# The plain torch layer of each activation of the ops.
ACTIVATION_LAYERS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "mish": nn.Mish,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}
SCALE_MAPS = ("exp", "exp_half", "softplus_shift", "sigmoid2", "one_plus")


def positive_int(name: str, value: object) -> int:
    """Return ``value`` if it is an int >= 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
    return value


def one_of(name: str, value: object, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def widths(name: str, value: Sequence[int]) -> tuple[int, ...]:
    """Return a sequence of layer widths as a tuple of ints >= 1."""
    if isinstance(value, (str, int)):
        raise TypeError(f"{name} must be a sequence of ints, got {value!r}")
    return tuple(positive_int(f"{name}[{i}]", width) for i, width in enumerate(value))


def activation_name(layer: nn.Module) -> str | None:
    """Name of a plain torch activation layer whose parameters are the ops' own, or None."""
    for name, kind in ACTIVATION_LAYERS.items():
        if type(layer) is kind:
            return name if getattr(layer, "alpha", 1.0) == 1.0 else None
    return None
