"""Fields of HDF5 and npz files, read row by row; every complaint names the file and the field."""

from __future__ import annotations

import logging
import os
import struct
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from ._resize import fit

logger = logging.getLogger(__name__)
# Rows a chunk above which reading in random order is hopelessly slow.
_MANY_ROWS = 256
# What damaged HDF5 and zip files raise, from opening to the last chunk.
_H5_ERRORS = (OSError, RuntimeError, KeyError)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, struct.error)


class FieldError(ValueError):
    """A field of a file is missing, damaged or not what was expected."""


class Field(Protocol):
    """One array of a file: rows are read on demand."""

    path: Path
    field: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, rows: slice | np.ndarray) -> np.ndarray: ...


def existing_file(path: str | os.PathLike) -> Path:
    """The path, or an error that names it."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, got a folder")
    return path


class _Checks:
    path: Path
    field: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def error(self, text: str) -> FieldError:
        return FieldError(f"{self.path}: field {self.field!r}: {text}")

    def expect(self, dtype: Any, shape: tuple[int | None, ...]) -> None:
        """ValueError unless the dtype is ``dtype`` (or a kind of it) and the shape fits; None stands for any size."""
        if not np.issubdtype(self.dtype, dtype):
            raise self.error(
                f"expected dtype {np.dtype(dtype) if dtype is np.uint8 else dtype.__name__}, got {self.dtype}"
            )
        fits = len(self.shape) == len(shape) and all(e in (None, s) for e, s in zip(shape, self.shape))
        if not fits:
            wanted = ", ".join("N" if size is None else str(size) for size in shape)
            raise self.error(f"expected shape ({wanted}), got {self.shape}")


class H5Field(_Checks):
    """A dataset of an HDF5 file: one handle per process and thread, opened on first use (DataLoader workers)."""

    def __init__(self, path: str | os.PathLike, field: str) -> None:
        self.path, self.field = existing_file(path), field
        self._local = threading.local()
        try:
            with h5py.File(self.path, "r") as file:
                if field not in file:
                    raise self.error(f"missing; the file has {sorted(file)}")
                dataset = file[field]
                if not isinstance(dataset, h5py.Dataset):
                    raise self.error("expected a dataset, got a group")
                self.shape, self.dtype = dataset.shape, dataset.dtype
                # None for chunked or compressed data; then rows come through the HDF5 library.
                offset = dataset.id.get_offset() if dataset.size else None
                if dataset.chunks is not None and dataset.chunks[0] > _MANY_ROWS:
                    logger.warning(
                        "%s: field %r is stored in chunks %s: reading single rows inflates %d rows each; "
                        "`h5repack -l %s:CONTI` writes a copy that is read at full speed",
                        *(self.path, field, dataset.chunks, dataset.chunks[0], field),
                    )
        except _H5_ERRORS as error:
            raise self.error(f"not a readable HDF5 file ({error})") from error
        self._map = None
        if offset is not None and self.dtype.isnative:
            self._map = _memory_map(self, offset)

    def _dataset(self) -> h5py.Dataset:
        # A handle inherited through fork shares state with the parent, so each process opens its own.
        if getattr(self._local, "pid", None) != os.getpid():
            # The chunk cache holds some chunks of the real files (default 1 MB: each row would inflate its chunk anew).
            file = h5py.File(self.path, "r", rdcc_nbytes=64 << 20, rdcc_nslots=10007)
            self._local.dataset, self._local.pid = file[self.field], os.getpid()
        return self._local.dataset

    def read(self, rows: slice | np.ndarray) -> np.ndarray:
        """A slice, or increasing unique rows, as a new array."""
        if self._map is not None:
            return np.array(self._map[rows])
        try:
            dataset = self._dataset()
            if isinstance(rows, slice):
                return dataset[rows]
            result = np.empty((len(rows), *self.shape[1:]), self.dtype)
            # Runs of neighbours are one slice each: h5py's own list selection costs about 1 ms a row.
            starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
            for start, stop in zip(starts, np.append(starts[1:], len(rows))):
                first = int(rows[start])
                dataset.read_direct(result, np.s_[first : first + int(stop - start)], np.s_[int(start) : int(stop)])
            return result
        except _H5_ERRORS as error:
            raise self.error(f"cannot be read, the file is damaged or truncated ({error})") from error

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_local", "_map")} | {
            "_offset": None if self._map is None else self._map.offset
        }

    def __setstate__(self, state: dict) -> None:
        offset = state.pop("_offset")
        self.__dict__.update(state)
        self._local = threading.local()
        self._map = None if offset is None else _memory_map(self, offset)


def _memory_map(field: _Checks, offset: int) -> np.memmap:
    needed = offset + int(np.prod(field.shape)) * field.dtype.itemsize
    if field.path.stat().st_size < needed:
        raise field.error(f"truncated: expected {needed} bytes, got {field.path.stat().st_size}")
    return np.memmap(field.path, field.dtype, "r", offset, field.shape)


class NpzField(_Checks):
    """An array of an .npz file: memory-mapped where it is stored uncompressed, else inflated once on first use.

    Binary uint8 images (``bits=True``) stay packed in memory, 8 pixels a byte: 0.38 GB instead of 3 GB for dSprites.
    """

    def __init__(self, path: str | os.PathLike, field: str, bits: bool = False) -> None:
        self.path, self.field, self._bits = existing_file(path), field, bits
        self._packed = self._map = None
        self._lock = threading.Lock()
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                if field not in names:
                    raise self.error(f"missing; the file has {sorted(names)}")
                info = archive.getinfo(f"{field}.npy")
                with archive.open(info) as stream:
                    self.shape, self.dtype, fortran = _npy_header(stream)
                    header = stream.tell()
        except FieldError:
            raise
        except _ZIP_ERRORS as error:
            raise self.error(f"not a readable npz file ({error})") from error
        if self.dtype.hasobject or fortran:
            raise self.error("expected a C-ordered array of numbers")
        if info.compress_type == zipfile.ZIP_STORED:
            self._map = _memory_map(self, _member_offset(self.path, info) + header)

    def _inflate(self) -> np.ndarray:
        with self._lock:
            if self._packed is None:
                logger.info("%s: %r is compressed; inflating it once", self.path, self.field)
                try:
                    with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.field}.npy") as stream:
                        _npy_header(stream)
                        self._packed = self._collect(stream)
                except FieldError:
                    raise
                except _ZIP_ERRORS as error:
                    raise self.error(f"cannot be read, the file is damaged or truncated ({error})") from error
        return self._packed

    def _collect(self, stream: Any) -> np.ndarray:
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        pack = self._bits and row % 8 == 0
        result = np.empty((self.shape[0], row // 8 if pack else row), np.uint8)
        step = max(1, (1 << 24) // max(1, row))
        for begin in range(0, self.shape[0], step):
            end = min(begin + step, self.shape[0])
            data = stream.read((end - begin) * row)
            if len(data) != (end - begin) * row:
                raise EOFError(f"expected {self.shape[0]} rows, the data end in row {begin + len(data) // row}")
            block = np.frombuffer(data, np.uint8).reshape(end - begin, row)
            if pack:
                if block.max() > 1:
                    raise self.error(f"expected binary images (0 and 1), got {block.max()}")
                block = np.packbits(block, axis=1)
            result[begin:end] = block
        return result

    def read(self, rows: slice | np.ndarray) -> np.ndarray:
        """A slice, or an array of rows, as a new array."""
        if self._map is not None:
            return np.array(self._map[rows])
        data = self._inflate()[rows]
        if self._bits and self._packed.shape[1] * 8 == int(np.prod(self.shape[1:])) * self.dtype.itemsize:
            data = np.unpackbits(data, axis=1)
        return np.ascontiguousarray(data).view(self.dtype).reshape(len(data), *self.shape[1:])

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_map")} | {
            "_offset": None if self._map is None else self._map.offset
        }

    def __setstate__(self, state: dict) -> None:
        offset = state.pop("_offset")
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._map = None if offset is None else _memory_map(self, offset)


def _npy_header(stream: Any) -> tuple[tuple[int, ...], np.dtype, bool]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, dtype, fortran


def _member_offset(path: Path, info: zipfile.ZipInfo) -> int:
    # The local header repeats name and extra field, with lengths of its own.
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + name + extra


def read_rows(field: Field, indices: np.ndarray, out: np.ndarray, scale: int = 1) -> None:
    """Rows of a uint8 image field into ``out``, in the order asked for, area-averaged to its size."""
    rows, inverse = np.unique(indices, return_inverse=True)
    images = field.read(rows)
    if images.ndim == 3:
        images = images[..., None]
    if scale != 1:
        images = images * np.uint8(scale)
    if images.shape[1:] != out.shape[1:]:
        images = fit(images, out.shape[1])
    np.take(images, inverse, axis=0, out=out)
