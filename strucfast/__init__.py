"""Fused layers, densities, losses, metrics and whole models for structured representation learning.

``import strucfast as sf`` needs torch, triton and numpy only; the rooms above the kernels load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

import torch

from ._version import __version__

_TORCH_FLOOR = (2, 10)
_torch_version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
if _torch_version < _TORCH_FLOOR:
    raise ImportError(f"strucfast {__version__} needs torch >= 2.10, found {torch.__version__}")

from . import ops, reference
from ._config import show_config
from .ops import use_backend

_LAZY = ("data", "distributions", "losses", "metrics", "models", "nn", "plots", "samplers", "training")

if TYPE_CHECKING:
    from . import data, losses, metrics, models, nn, plots, samplers, training

__all__ = ["__version__", "ops", "reference", "show_config", "use_backend", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            # Only a room that does not exist is an AttributeError; a missing dependency keeps its own message.
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
