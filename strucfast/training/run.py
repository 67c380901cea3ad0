"""A finished or running training run, read from its folder."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import checkpoint as checkpoints
from ._files import RunFolderError
from .config import TrainConfig
from .folder import CONFIG
from .log import read_history

if TYPE_CHECKING:
    import numpy as np

    from ..models import Autoencoder


class Run:
    """A run folder.

    Attributes:
        path: the folder. config: its TrainConfig.

    Raises:
        RunFolderError: there is no run at ``path``. ConfigError: its config.yaml cannot be used.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / CONFIG).is_file():
            raise RunFolderError(f"{self.path}: no run there ({CONFIG} is missing)")
        self.config = TrainConfig.load(self.path / CONFIG)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def seeds(self) -> list[Run]:
        """The runs of a command with several seeds; empty for a single run."""
        return [Run(self.path / f"seed-{seed}") for seed in self.config.train.seeds]

    def history(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl: step, split ("train" | "validation"), loss and terms, images_per_s, seconds."""
        return read_history(self.path / "metrics.jsonl")

    def checkpoint(self, which: str = "best") -> Path:
        """Folder of the "best" or the "last" checkpoint.

        Raises:
            CheckpointError: there is none. RunFolderError: the folder is that of several seeds.
        """
        if which not in ("best", "last"):
            raise ValueError(f"which: expected 'best' or 'last', got {which!r}")
        if self.config.train.seeds:
            names = ", ".join(str(self.path / f"seed-{seed}") for seed in self.config.train.seeds)
            raise RunFolderError(f"{self.path}: holds several runs; choose one of {names}")
        path = self.path / "checkpoints" / which
        checkpoints.recover_folder(path)
        if not path.is_dir():
            raise checkpoints.CheckpointError(f"{path}: no checkpoint there (yet)")
        return path

    def scalars(self, which: str = "best") -> dict[str, Any]:
        """What state.json of a checkpoint says: step, seconds, best_loss, ..."""
        return checkpoints.load(self.checkpoint(which)).scalars

    def load_model(self, which: str = "best") -> Autoencoder:
        """The model with the weights of the "best" (by validation loss) or the "last" checkpoint, in eval mode.

        Raises:
            CheckpointError: there is none, or it is damaged; names the file.
        """
        from .. import models

        path = self.checkpoint(which)
        # sizes and checksums first
        checkpoints.load(path)
        return models.load(path).eval()

    @functools.cache  # noqa: B019
    def dataset(self) -> Any:
        """The data set the run was trained on."""
        from .. import data

        return data.build(self.config.data.spec, image_size=self.config.model.image_size)

    @functools.cache  # noqa: B019
    def splits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indices of the training, validation and test images."""
        from .. import data

        return data.split(self.dataset(), self.config.data.fractions, self.config.data.split_seed)

    def evaluation(self) -> dict[str, Any] | None:
        """What evaluation.json says; None before `strucfast evaluate`."""
        path = self.path / "evaluation.json"
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: corrupt: {error}") from error
