"""Models as folders: config.json and model.safetensors, written atomically, without pickle."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .base import Autoencoder
from .config import from_dict, to_dict
from .registry import family

FORMAT = "strucfast.model"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save(model: Autoencoder, directory: str | os.PathLike) -> None:
    """Write a model's folder; a reader never sees a half-written file."""
    import safetensors.torch

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # The file format has no strides: parameters kept in channels_last are written in their logical order.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = safetensors.torch.save(tensors, metadata={"format": FORMAT, "version": str(FORMAT_VERSION)})
    header = {"format": FORMAT, "version": FORMAT_VERSION, "name": model.name, "config": to_dict(model.config)}
    write_atomically(directory / WEIGHTS_FILE, content)
    write_atomically(directory / CONFIG_FILE, (json.dumps(header, indent=2) + "\n").encode())


def load(directory: str | os.PathLike, *, device: str | torch.device = "cpu") -> Autoencoder:
    """Read a model's folder. Fields that its config lacks, as they were added later, take their defaults.

    Raises:
        FileNotFoundError: a missing file. ValueError: a corrupt, truncated or foreign file; names file and field.
    """
    import safetensors
    import safetensors.torch

    directory = Path(directory)
    name, kind, values = _read_config(directory / CONFIG_FILE)
    path = directory / WEIGHTS_FILE
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    model = _checked(directory / CONFIG_FILE, lambda: kind(name, from_dict(kind.config_type, values)))
    _check_tensors(path, model, tensors)
    dtype = tensors[next(iter(tensors))].dtype
    model.to(device=device, dtype=dtype)
    model.load_state_dict(tensors)
    return model


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, sync, rename: after a crash the old file or the new one is there, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # The rename itself lives in the folder.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_config(path: Path) -> tuple[str, type[Autoencoder], dict[str, Any]]:
    try:
        header = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise ValueError(f"{path}: field 'format' must be {FORMAT!r}, got {found!r}")
    if header.get("version") != FORMAT_VERSION:
        raise ValueError(f"{path}: field 'version' must be {FORMAT_VERSION}, got {header.get('version')!r}")
    name, values = header.get("name"), header.get("config")
    if not isinstance(name, str):
        raise ValueError(f"{path}: field 'name' must be a string, got {name!r}")
    if not isinstance(values, dict):
        raise ValueError(f"{path}: field 'config' must be an object, got {values!r}")
    kind, _ = _checked(path, lambda: family(name))
    return name, kind, values


def _checked(path: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` returns; its complaints gain the file's name."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_tensors(path: Path, model: Autoencoder, tensors: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    for name in own:
        if name not in tensors:
            raise ValueError(f"{path}: tensor {name!r} is missing")
        if tensors[name].shape != own[name].shape:
            expected, found = tuple(own[name].shape), tuple(tensors[name].shape)
            raise ValueError(f"{path}: tensor {name!r} must have shape {expected}, got {found}")
        if not tensors[name].is_floating_point():
            raise ValueError(f"{path}: tensor {name!r} must be floating point, got {tensors[name].dtype}")
    for name in tensors:
        if name not in own:
            raise ValueError(f"{path}: tensor {name!r} is none of model {model.name!r}")
