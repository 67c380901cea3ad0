"""Launch configurations: a heuristic computes them, a table that an offline tuner wrote may override it."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import TypeVar

import torch

# One file per device, named like nvidia_h200.json: {"modulate_forward": {"<key>": {"block_c": 1, ...}}}.
TABLE_DIRECTORY = Path(__file__).parent / "tuned"

Config = TypeVar("Config")


def table_path(device_name: str) -> Path:
    """Where the table of a device lies."""
    slug = "_".join("".join(ch if ch.isalnum() else " " for ch in device_name.lower()).split())
    return TABLE_DIRECTORY / f"{slug}.json"


@functools.cache
def _table(path: Path) -> dict[str, dict[str, dict[str, int]]]:
    return json.loads(path.read_text()) if path.is_file() else {}


@functools.cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def tuned(operation: str, key: tuple[object, ...], heuristic: Config, device: torch.device) -> Config:
    """``heuristic`` with the fields that the device's table holds for this operation and problem.

    Raises:
        ValueError: the table names a field that the configuration does not have.
    """
    if device.type != "cuda":
        return heuristic
    path = table_path(_device_name(torch.cuda.current_device() if device.index is None else device.index))
    return override(path, operation, key, heuristic)


def override(path: Path, operation: str, key: tuple[object, ...], heuristic: Config) -> Config:
    """:func:`tuned` for a given table file."""
    entry = _table(path).get(operation, {}).get(",".join(map(str, key)))
    if entry is None:
        return heuristic
    unknown = set(entry) - {field.name for field in dataclasses.fields(heuristic)}
    if unknown:
        raise ValueError(f"{path}: {operation} has unknown fields {sorted(unknown)}")
    return dataclasses.replace(heuristic, **entry)
