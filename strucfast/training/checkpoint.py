"""Checkpoints: tensors as safetensors, scalars as JSON, replaced atomically, verified when read; no pickle."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._files import recover_folder, write_folder

MODEL, STATE, SCALARS, MODEL_CONFIG = "model.safetensors", "state.safetensors", "state.json", "config.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another run; the message names the file and the field."""


@dataclass
class Checkpoint:
    """What one checkpoint folder holds.

    Attributes:
        model: the weights to evaluate with (the moving average where there is one), by name.
        state: what resuming needs besides: optimizer moments, and the raw weights where ``model`` holds averages.
        scalars: JSON-able values: step, seconds, best validation loss.
        model_config: JSON text that rebuilds the model, so that the folder can be loaded by itself; may be empty.
    """

    model: dict[str, Tensor]
    state: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)
    model_config: str = ""


def save(path: Path | str, checkpoint: Checkpoint) -> None:
    """Write the folder ``path``; what stood there stays until the new one is complete on the disk.

    Raises:
        RunFolderError: it cannot be written (no permission, disk full); the old checkpoint is untouched.
    """
    from safetensors.torch import save as to_bytes

    files = {
        MODEL: to_bytes({name: _storable(tensor) for name, tensor in checkpoint.model.items()}),
        STATE: to_bytes({name: _storable(tensor) for name, tensor in checkpoint.state.items()}),
    }
    if checkpoint.model_config:
        files[MODEL_CONFIG] = checkpoint.model_config.encode()
    sums = {name: {"bytes": len(data), "crc32": zlib.crc32(data)} for name, data in files.items()}
    files[SCALARS] = json.dumps({**checkpoint.scalars, "files": sums}, indent=1).encode()
    write_folder(Path(path), files)


def load(path: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Read and verify the folder ``path``.

    Raises:
        CheckpointError: there is none, or a file is missing, truncated or altered; names the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    path = Path(path)
    recover_folder(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no checkpoint there")
    try:
        scalars = json.loads(_read(path / SCALARS))
        sums = scalars.pop("files")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path / SCALARS}: corrupt: {error!r}") from error
    contents = {}
    for name in (MODEL, STATE, MODEL_CONFIG):
        if name not in sums:
            if name == MODEL_CONFIG:
                continue
            raise CheckpointError(f"{path / SCALARS}: field 'files': {name} is not listed")
        data = _read(path / name)
        if len(data) != sums[name]["bytes"]:
            raise CheckpointError(f"{path / name}: truncated: expected {sums[name]['bytes']} bytes, got {len(data)}")
        if zlib.crc32(data) != sums[name]["crc32"]:
            raise CheckpointError(f"{path / name}: corrupt: its checksum differs from {SCALARS}")
        if name == MODEL_CONFIG:
            contents[name] = data.decode()
            continue
        try:
            contents[name] = {key: tensor.to(device) for key, tensor in from_bytes(data).items()}
        except SafetensorError as error:
            raise CheckpointError(f"{path / name}: corrupt: {error}") from error
    return Checkpoint(contents[MODEL], contents[STATE], scalars, contents.get(MODEL_CONFIG, ""))


def copy_into(targets: dict[str, Tensor], saved: dict[str, Tensor], file: Path | str) -> None:
    """Copy saved tensors into ``targets`` in place, name by name.

    Raises:
        CheckpointError: a name is missing or a shape or dtype differs; names ``file`` and the tensor.
    """
    for name, target in targets.items():
        if name not in saved:
            raise CheckpointError(f"{file}: field {name!r} is missing")
        source = saved[name]
        if source.shape != target.shape or source.dtype != target.dtype:
            expected, got = (f"{str(t.dtype)[6:]} {tuple(t.shape)}" for t in (target, source))
            raise CheckpointError(f"{file}: field {name!r}: expected {expected}, got {got}")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])


def _storable(tensor: Tensor) -> Tensor:
    # safetensors takes row-major tensors that share no memory
    return tensor.detach().cpu().contiguous().clone()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
