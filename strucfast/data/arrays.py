"""The user's own images in an array or a .npy, .npz or .h5 file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ._base import ImageDataset, check_indices, integer_array
from ._files import Field, FieldError, H5Field, NpzField, existing_file
from ._resize import fit

_IMAGE_KEYS = ("images", "imgs")
_FACTOR_KEYS = ("factors", "latents_classes")
_CHANNELS = (1, 3, 4)


class _Array:
    """An array in memory (or memory-mapped), with the interface of a file's field."""

    def __init__(self, array: np.ndarray, path: Any, field: str) -> None:
        self.array, self.path, self.field = array, path, field
        self.shape, self.dtype = array.shape, array.dtype

    def read(self, rows: slice | np.ndarray) -> np.ndarray:
        return np.array(self.array[rows])


def _npy(path: Path) -> _Array:
    try:
        return _Array(np.load(path, mmap_mode="r"), path, "array")
    except (ValueError, EOFError, OSError) as error:
        raise FieldError(f"{path}: field 'array': not a readable npy file ({error})") from error


def _fields(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays in an .npz or .h5 file."""
    if path.suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
        except (zipfile.BadZipFile, OSError) as error:
            raise FieldError(f"{path}: field 'images': not a readable npz file ({error})") from error
        return {name: NpzField(path, name).shape for name in names}
    try:
        with h5py.File(path, "r") as file:
            return {name: item.shape for name, item in file.items() if isinstance(item, h5py.Dataset)}
    except (OSError, RuntimeError) as error:
        raise FieldError(f"{path}: field 'images': not a readable HDF5 file ({error})") from error


def _image_key(path: Path, fields: dict[str, tuple[int, ...]]) -> str:
    named = [key for key in _IMAGE_KEYS if key in fields]
    candidates = named or [name for name, shape in fields.items() if len(shape) == 4]
    if len(candidates) != 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in sorted(fields.items())) or "nothing"
        raise FieldError(
            f"{path}: field 'images': expected this name, 'imgs', or a single 4-D array; the file has {listed}"
        )
    return candidates[0]


class Arrays(ImageDataset):
    """Images from an array or a file, read row by row.

    Args:
        source: an array, or the path of a .npy, .npz or .h5/.hdf5 file. In .npz and .h5 the images are the field
            ``images`` or ``imgs``, else the only 4-D array; an integer field ``factors`` or ``latents_classes`` (N, K),
            where there is one, gives the factors. (N,H,W), (N,H,W,C) or (N,C,H,W) with C in 1, 3, 4; uint8, or floats
            in [0, 1], or bool.
        image_size: side of the middle square to return, by area average; None keeps the images as they are.
        factors: (N, K) integers, when they are not in the file.
        factor_names: K names; default "factor_0", ... when there are factors.
        name: default the file's stem, or "array".

    Raises:
        ValueError, TypeError: nothing that looks like images, an unsupported dtype, an image_size larger than the
            images; when reading, floats outside [0, 1] or NaN.
        FileNotFoundError: no such file.
    """

    def __init__(
        self,
        source: np.ndarray | str | os.PathLike,
        image_size: int | None = None,
        *,
        factors: Any = None,
        factor_names: tuple[str, ...] | None = None,
        name: str | None = None,
    ) -> None:
        self._field, stored = self._open(source)
        self._label = f"{self._field.path}: field {self._field.field!r}"
        self.name = name or (Path(self._field.path).stem if self._field.path else "array")
        self.image_shape = self._shape(image_size)
        if factors is None:
            factors = stored
        self._factors = None if factors is None else integer_array("factors", factors, 2)
        self._describe_factors(factor_names)

    @staticmethod
    def _open(source: Any) -> tuple[Field, np.ndarray | None]:
        if isinstance(source, np.ndarray):
            return _Array(source, "", "images"), None
        path = existing_file(source)
        if path.suffix == ".npy":
            return _npy(path), None
        if path.suffix not in (".npz", ".h5", ".hdf5"):
            raise ValueError(f"{path}: expected a .npy, .npz, .h5 or .hdf5 file, got {path.suffix or 'no suffix'!r}")
        fields = _fields(path)
        kind = NpzField if path.suffix == ".npz" else H5Field
        images = kind(path, _image_key(path, fields))
        keys = [key for key in _FACTOR_KEYS if key in fields]
        return images, kind(path, keys[0]).read(slice(None)) if keys else None

    def _shape(self, image_size: int | None) -> tuple[int, int, int]:
        shape, dtype = self._field.shape, self._field.dtype
        if not (dtype == np.uint8 or dtype == np.bool_ or np.issubdtype(dtype, np.floating)):
            raise TypeError(f"{self._label}: expected uint8, bool or float images, got dtype {dtype}")
        if len(shape) == 3:
            shape = (*shape, 1)
        self._channels_first = len(shape) == 4 and shape[3] not in _CHANNELS and shape[1] in _CHANNELS
        if self._channels_first:
            shape = (shape[0], shape[2], shape[3], shape[1])
        if len(shape) != 4 or shape[3] not in _CHANNELS:
            raise ValueError(
                f"{self._label}: expected (N,H,W), (N,H,W,C) or (N,C,H,W) with C in {_CHANNELS}, "
                f"got {self._field.shape}"
            )
        if shape[0] == 0:
            raise ValueError(f"{self._label}: expected at least one image, got {self._field.shape}")
        if image_size is None:
            return shape[1:]
        if not 0 < image_size <= min(shape[1:3]):
            raise ValueError(
                f"image_size: expected 1 to {min(shape[1:3])}, the shorter side of the images, got {image_size} "
                f"({self._label})"
            )
        return (image_size, image_size, shape[3])

    def _describe_factors(self, names: tuple[str, ...] | None) -> None:
        if self._factors is None:
            self.factor_names = self.factor_sizes = ()
            return
        count, width = self._factors.shape
        if count != len(self):
            raise ValueError(f"factors: expected {len(self)} rows, one an image, got {count}")
        if (self._factors < 0).any():
            raise ValueError(f"factors: expected values >= 0, got {self._factors.min()}")
        self.factor_names = tuple(names) if names is not None else tuple(f"factor_{k}" for k in range(width))
        if len(self.factor_names) != width:
            raise ValueError(f"factor_names: expected {width} names, got {len(self.factor_names)}")
        self.factor_sizes = tuple(int(size) for size in self._factors.max(axis=0) + 1)

    def __len__(self) -> int:
        return self._field.shape[0]

    def _read(self, indices: np.ndarray, out: np.ndarray) -> None:
        rows, inverse = np.unique(indices, return_inverse=True)
        images = self._field.read(rows)
        if images.ndim == 3:
            images = images[..., None]
        if self._channels_first:
            images = images.transpose(0, 2, 3, 1)
        if np.issubdtype(images.dtype, np.floating):
            # Written so that NaN fails too.
            if not ((images >= 0) & (images <= 1)).all():
                raise ValueError(f"{self._label}: expected floats in [0, 1], got values outside (or NaN)")
            images = np.rint(images * 255).astype(np.uint8)
        elif images.dtype == np.bool_:
            images = images * np.uint8(255)
        if images.shape[1:] != self.image_shape:
            images = fit(images, self.image_shape[0])
        np.take(images, inverse, axis=0, out=out)

    def factors(self, indices: Any) -> np.ndarray:
        rows = check_indices(indices, len(self))
        return np.empty((len(rows), 0), np.int64) if self._factors is None else self._factors[rows]

    def index(self, factors: Any) -> np.ndarray:
        """Rows with these factor values (the first, where several have them); ValueError where none has."""
        if self._factors is None:
            raise ValueError(f"{self.name}: the factors of these images are not known")
        wanted = integer_array("factors", factors, 2)
        if wanted.shape[1] != self._factors.shape[1]:
            raise ValueError(f"factors: expected shape (N, {self._factors.shape[1]}), got {wanted.shape}")
        (
            known,
            first,
        ) = np.unique(self._factors, axis=0, return_index=True)
        rows = {tuple(row): int(at) for row, at in zip(known.tolist(), first)}
        found = [rows.get(tuple(row), -1) for row in wanted.tolist()]
        if -1 in found:
            raise ValueError(f"factors: no image has {tuple(wanted[found.index(-1)].tolist())}")
        return np.asarray(found, dtype=np.int64)
