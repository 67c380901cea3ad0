"""Training the second stage of a two-stage model: does the first stage fit, and its images, computed once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._files import fsync_directory
from .batches import BatchOrder, DeviceBatches, HostBatches
from .config import ConfigError, TrainConfig
from .folder import CONFIG, FIRST_STAGE

_FORMAT = "strucfast.first-stage 1"
_HEADER = 512


def check_first_stage(config: TrainConfig) -> str | None:
    """Whether the run that ``model.overrides`` names as stage 1 saw the same data set.

    Returns:
        A warning where its split differs, so that images held out here may have trained the first stage.

    Raises:
        ConfigError: it was trained on a data set of another name; names both.
    """
    first = _run_config(config.model.overrides.get("stage1"))
    if first is None:
        return None
    theirs, ours = (_data_name(c.data.spec) for c in (first, config))
    if theirs != ours:
        source = config.model.overrides["stage1"]
        raise ConfigError(
            f"model.overrides.stage1: {source} was trained on {theirs!r}, but data.spec is {config.data.spec!r}: both "
            "stages must see the same images"
        )
    if (first.data.fractions, first.data.split_seed) != (config.data.fractions, config.data.split_seed):
        return "warning: stage 1 had another split (data.fractions, data.split_seed): it may know images held out here"
    return None


def _run_config(source: Any) -> TrainConfig | None:
    """The configuration of the run that a model folder belongs to, where it is a run's."""
    if not isinstance(source, str) or not source:
        return None
    folder = Path(source)
    for run in (folder, folder.parent.parent if folder.parent.name == "checkpoints" else folder):
        if (run / CONFIG).is_file():
            return TrainConfig.load(run / CONFIG)
    return None


def _data_name(spec: str) -> str:
    """The set that ``data.spec`` names, whichever file it comes from."""
    name, _, _ = spec.partition(":")
    return name if os.sep not in name and not Path(name).suffix else Path(spec).stem


class FirstStageCache:
    """First-stage images of the training rows in one sparse file of a run folder.

    A record is a checksum and the image. A record counts as filled when its checksum is right, so one that a kill or a
    power cut left half-written is computed again. The header names the weights and the data; a file with another
    header is replaced. Several processes may share the file: who writes a record writes the same bytes.

    Args:
        path: the file. key: whatever the images depend on. rows: sorted numbers of the training images.
        shape: (H, W, C) of an image. max_bytes: the file's greatest size; rows beyond it are not kept.
        create: make the file where there is none that fits; otherwise it must be there.

    Raises:
        OSError: the file cannot be made or opened.
    """

    def __init__(
        self, path: Path, key: str, rows: np.ndarray, shape: tuple[int, ...], max_bytes: int, create: bool = True
    ) -> None:
        self.path, self.shape, self.rows = Path(path), tuple(shape), np.asarray(rows)
        self._record = 4 + int(np.prod(shape))
        self.capacity = int(min(len(self.rows), max(0, (max_bytes - _HEADER) // self._record)))
        digest = hashlib.sha256(key.encode() + np.ascontiguousarray(self.rows).tobytes()).hexdigest()
        content = {"format": _FORMAT, "key": digest, "shape": list(self.shape), "records": self.capacity}
        self._header = json.dumps(content).encode().ljust(_HEADER)
        if create and not self._fits():
            self._make()
        self._file = open(self.path, "r+b", buffering=0)
        if self._file.read(_HEADER) != self._header:
            self._file.close()
            raise OSError(f"{self.path}: is of another first stage or data set")

    @property
    def max_bytes(self) -> int:
        """Disk space once every record is filled."""
        return _HEADER + self.capacity * self._record

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (N, H, W, C) of dataset rows (N,), and which of them (N,) are there."""
        images = np.empty((len(indices), *self.shape), np.uint8)
        found = np.zeros(len(indices), bool)
        for place, slot in enumerate(self._slots(indices)):
            if slot < 0:
                continue
            self._file.seek(_HEADER + slot * self._record)
            record = self._file.read(self._record)
            if len(record) == self._record and int.from_bytes(record[:4], "little") == _checksum(record[4:], slot):
                images[place] = np.frombuffer(record, np.uint8, offset=4).reshape(self.shape)
                found[place] = True
        return images, found

    def write(self, indices: np.ndarray, images: np.ndarray) -> None:
        """Keep the uint8 images (N, H, W, C) of dataset rows (N,).

        Raises:
            OSError: the disk is full; what is kept already stays usable.
        """
        for slot, image in zip(self._slots(indices), images, strict=True):
            if slot < 0:
                continue
            data = np.ascontiguousarray(image).tobytes()
            record = _checksum(data, slot).to_bytes(4, "little") + data
            self._file.seek(_HEADER + slot * self._record)
            # a short write is a full disk; its record fails the checksum
            if self._file.write(record) != len(record):
                raise OSError(f"{self.path}: disk full")

    def close(self, remove: bool = False) -> None:
        """Close the file, and delete it."""
        self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)

    def _slots(self, indices: np.ndarray) -> list[int]:
        """Record of each row, -1 for one that is not kept."""
        slots = np.searchsorted(self.rows, indices)
        return np.where(slots < self.capacity, slots, -1).tolist()

    def _fits(self) -> bool:
        try:
            with open(self.path, "rb") as stream:
                return stream.read(_HEADER) == self._header
        except FileNotFoundError:
            return False

    def _make(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with open(temporary, "wb") as stream:
            stream.write(self._header)
            # holes take no space
            stream.truncate(self.max_bytes)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self.path)
        fsync_directory(self.path.parent)


def _checksum(data: bytes, slot: int) -> int:
    # never 0, which an empty record has
    return zlib.crc32(data, slot + 1) | 1


class FirstStageBatches:
    """The batches of ``batches`` with the first stage's images as further channels: uint8 (N, H, W, 2C).

    Args:
        batches, order, start: where X comes from, which rows make up a step, and the step to begin with.
        compute: Y of X, uint8 (N, H, W, C) on the device, a function of each image alone.
        cache: keeps what was computed; None computes Y at every step.
        warn: told once when nothing more can be kept.
    """

    def __init__(
        self,
        batches: HostBatches | DeviceBatches,
        order: BatchOrder,
        start: int,
        compute: Callable[[Tensor], Tensor],
        cache: FirstStageCache | None,
        warn: Callable[[str], None],
    ) -> None:
        self._batches, self._order, self._next = batches, order, start
        self._compute, self.cache, self._warn = compute, cache, warn
        self._writable = True

    def next(self) -> Tensor:
        """The next step's X and Y, uint8 (N, H, W, 2C) on the device."""
        images = self._batches.next()
        indices = self._order(self._next)
        self._next += 1
        first = self._compute(images) if self.cache is None else self._kept(images, indices)
        return torch.cat([images, first], dim=3)

    def close(self) -> None:
        """Stop the threads; the cache stays open."""
        self._batches.close()

    def _kept(self, images: Tensor, indices: np.ndarray) -> Tensor:
        kept, found = self.cache.read(indices)
        first = torch.from_numpy(kept).to(images.device)
        missing = np.flatnonzero(~found)
        if len(missing) == 0:
            return first
        where = torch.from_numpy(missing).to(images.device)
        computed = self._compute(images[where])
        first[where] = computed
        if self._writable:
            try:
                self.cache.write(indices[missing], computed.cpu().numpy())
            except OSError as error:
                self._writable = False
                self._warn(f"first stage: nothing more is kept ({error.strerror or error}); computed where missing")
        return first


def open_cache(
    folder: Path, key: str, dataset: Any, rows: np.ndarray, max_bytes: int, create: bool, warn: Callable[[str], None]
) -> FirstStageCache | None:
    """The run folder's cache; None, and a warning, where it cannot be had, so that training goes on without."""
    # a few images stand for the data set's content
    sample = dataset.images(rows[np.linspace(0, len(rows) - 1, 16).astype(np.int64)])
    key = f"{key} {dataset.name} {len(dataset)} {zlib.crc32(np.ascontiguousarray(sample).tobytes())}"
    try:
        return FirstStageCache(folder / FIRST_STAGE, key, rows, dataset.image_shape, max_bytes, create)
    except OSError as error:
        warn(f"first stage: its images are not kept ({error.strerror or error}); computed at every step")
        return None
