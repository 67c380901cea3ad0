"""Typed configurations of the models; plain values only, so that they go into JSON and onto the command line.

A family may keep its config in its own file. Fields are int, float, str, bool, tuples of these (nested, too), None
beside any of them, or a dict of plain values.
"""

import copy
import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from ..nn._checks import ACTIVATION_LAYERS, SCALE_MAPS, one_of, positive_int, widths

BACKBONES = ("paper", "authors", "mlp")
Config = TypeVar("Config", bound="AEConfig")


@dataclass(frozen=True)
class AEConfig:
    """What every autoencoder has.

    Attributes:
        image_size: height and width in pixels, a power of two >= 8 (any size with "mlp"). channels: image channels.
        latent_dim: dims of the code. width: channels of every convolution block. blocks: blocks of encoder and decoder.
        backbone: "paper" (the text of the SAE paper), "authors" (their published configuration, 64 or 128 px) or "mlp"
            (ISA-VAE paper, appendix A.4; hourglass models): no convolutions, the decoder has ``blocks`` hidden layers
            of ``width`` units with tanh, the encoder one fewer with ReLU.
        activation: of the convolution blocks: mish, silu, relu, elu or tanh.
        num_groups: groups of every GroupNorm, a divisor of width.
    """

    image_size: int = 64
    channels: int = 3
    latent_dim: int = 12
    width: int = 64
    blocks: int = 12
    backbone: str = "paper"
    activation: str = "mish"
    num_groups: int = 8

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "latent_dim", "width", "blocks", "num_groups"):
            positive_int(name, getattr(self, name))
        one_of("backbone", self.backbone, BACKBONES)
        one_of("activation", self.activation, [name for name in ACTIVATION_LAYERS if name != "identity"])
        if self.backbone == "mlp":
            return
        if self.image_size < 8 or self.image_size & (self.image_size - 1):
            raise ValueError(f"image_size must be a power of two >= 8, got {self.image_size}")
        if self.width % self.num_groups:
            raise ValueError(f"num_groups must divide width = {self.width}, got {self.num_groups}")


@dataclass(frozen=True)
class SAEConfig(AEConfig):
    """A structural decoder: ``transforms`` Str-Tfm layers whose MLPs have ``hidden`` layers and a ``scale_map``."""

    transforms: int = 12
    hidden: tuple[int, ...] = (64, 64, 64)
    scale_map: str = "exp"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("transforms", self.transforms)
        object.__setattr__(self, "hidden", widths("hidden", self.hidden))
        one_of("scale_map", self.scale_map, SCALE_MAPS)


@dataclass(frozen=True)
class VAEConfig(AEConfig):
    """A Gaussian encoder and the ELBO; ``beta`` weights the KL term (1 is the VAE)."""

    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "beta", minimum=0.0)


def set_number(config: AEConfig, name: str, *, minimum: float = -math.inf, above: float = -math.inf) -> None:
    """Check that a field is a finite number >= ``minimum`` and > ``above``, and keep it as a float."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (minimum <= value < math.inf and value > above):
        bound = f" and >= {minimum:g}" if minimum > -math.inf else f" and > {above:g}" if above > -math.inf else ""
        raise ValueError(f"{name} must be finite{bound}, got {value}")
    object.__setattr__(config, name, float(value))


def to_dict(config: AEConfig) -> dict[str, Any]:
    """Plain JSON-able values of a config."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    """``value`` with lists in place of tuples, at every depth."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """Build a config of ``kind`` from plain values; a field that is not given takes its default.

    Raises:
        ValueError: an unknown field, or a value out of range. TypeError: a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"fields are {', '.join(hints)}"
            raise ValueError(f"{name!r} is no field of {kind.__name__}; {hint}")
    return kind(**{name: _checked(name, value, hints[name]) for name, value in values.items()})


def _checked(name: str, value: Any, hint: Any) -> Any:
    """``value`` if it has the field's type; lists become tuples where the field is one."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        # A list goes to the field's tuple, anything else to its number.
        wanted = isinstance(value, (list, tuple))
        kinds = [kind for kind in arguments if kind is not types.NoneType]
        return _checked(name, value, next((k for k in kinds if (typing.get_origin(k) is tuple) == wanted), kinds[0]))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{name} must be {_describe(hint)}, got {value!r}")
        return tuple(_checked(f"{name}[{i}]", item, arguments[0]) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{name} must be {_describe(hint)}, got {value!r}")
        return _plain(copy.deepcopy(value))
    kinds = (int, float) if hint is float else (hint,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
        raise TypeError(f"{name} must be {_describe(hint)}, got {value!r}")
    return value


def _describe(hint: Any, plural: bool = False) -> str:
    """Words for a field's type: "int", "a list of ints", "a list of lists of floats"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return ("lists of " if plural else "a list of ") + _describe(arguments[0], plural=True)
    if origin is dict:
        return "mappings" if plural else "a mapping"
    return hint.__name__ + "s" * plural
