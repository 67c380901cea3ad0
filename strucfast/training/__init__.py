"""Training runs: typed configuration, trainer, atomic checkpoints, run folders, held-out evaluation."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._files import RunFolderError
    from .checkpoint import CheckpointError
    from .config import ConfigError, TrainConfig, preset, presets
    from .engine import NonFinite
    from .evaluation import Evaluation, evaluate_run
    from .run import Run
    from .seeds import train_seeds
    from .trainer import Trainer

# loaded on first use: reading a configuration needs no torch
_HOMES = {
    "CheckpointError": "checkpoint",
    "ConfigError": "config",
    "Evaluation": "evaluation",
    "NonFinite": "engine",
    "Run": "run",
    "RunFolderError": "_files",
    "TrainConfig": "config",
    "Trainer": "trainer",
    "evaluate_run": "evaluation",
    "preset": "config",
    "presets": "config",
    "train_seeds": "seeds",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Evaluation",
    "NonFinite",
    "Run",
    "RunFolderError",
    "TrainConfig",
    "Trainer",
    "evaluate_run",
    "preset",
    "presets",
    "train_seeds",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
