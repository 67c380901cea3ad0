"""What every image set offers: index space first, images on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from ._device import DeviceImages

Indices = Sequence[int] | np.ndarray


def integer_array(name: str, values: Any, ndim: int) -> np.ndarray:
    """``values`` as an int64 array of ``ndim`` axes; floats and masks are refused, never rounded."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: expected a rectangular array of integers ({error})") from None
    # An empty list has no type of its own.
    if array.size == 0 and not np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name}: expected integers, got dtype {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} axes, got shape {array.shape}")
    return np.ascontiguousarray(array, dtype=np.int64)


def check_indices(indices: Any, count: int) -> np.ndarray:
    """(N,) int64 row numbers, each in [0, count); negative numbers do not wrap around."""
    array = integer_array("indices", indices, 1)
    bad = (array < 0) | (array >= count)
    if bad.any():
        at = int(bad.argmax())
        raise IndexError(f"indices: expected values in [0, {count}), got {array[at]} at position {at}")
    return array


def check_out(out: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The caller's buffer, or a new one."""
    if out is None:
        return np.empty(shape, np.uint8)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a numpy array, got {type(out).__name__}")
    if out.dtype != np.uint8:
        raise TypeError(f"out: expected dtype uint8, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out: expected a writeable C-contiguous array")
    return out


class ImageDataset(ABC):
    """Images addressed by row number, with their factors of variation where they are known.

    Attributes:
        name: short name of the set.
        factor_names, factor_sizes: K names and numbers of values; empty when the factors are unknown.
        image_shape: (H, W, C).
    """

    name: str
    factor_names: tuple[str, ...]
    factor_sizes: tuple[int, ...]
    image_shape: tuple[int, int, int]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """Write the images of the checked ``indices`` into the checked ``out``."""

    @abstractmethod
    def factors(self, indices: Indices) -> np.ndarray:
        """(N, K) int64 factor values of the images ``indices``."""

    @abstractmethod
    def index(self, factors: Any) -> np.ndarray:
        """(N,) int64 row numbers of the images with these (N, K) factor values: the inverse of :meth:`factors`."""

    def images(self, indices: Indices, out: np.ndarray | None = None) -> np.ndarray:
        """Images of these rows.

        Args:
            indices: (N,) integers in [0, len(self)).
            out: optional C-contiguous uint8 (N, H, W, C) buffer to fill; a new one otherwise.

        Returns:
            (N, H, W, C) uint8 in 0..255 (``out`` itself when it was given).

        Raises:
            IndexError: an index out of range (negative ones do not wrap around).
            TypeError, ValueError: indices that are not a 1-D list of integers; a buffer that does not fit.
        """
        checked = check_indices(indices, len(self))
        buffer = check_out(out, (len(checked), *self.image_shape))
        if len(checked):
            self._read(checked, buffer)
        return buffer

    def __getitem__(self, index: int) -> np.ndarray:
        """One image (H, W, C), so that the set is a map-style dataset for ``torch.utils.data.DataLoader``."""
        return self.images(np.asarray([index]))[0]

    def to_device(self, device: torch.device | str) -> DeviceImages:
        """The whole set as one uint8 tensor (len, H, W, C) on ``device``, with the same ``images()`` on tensors."""
        from ._device import DeviceImages

        return DeviceImages(self, device)

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        factors = ", ".join(f"{n} {s}" for n, s in zip(self.factor_names, self.factor_sizes)) or "unknown"
        return f"{type(self).__name__}({len(self)} images {height}x{width}x{channels}; factors: {factors})"


def mixed_radix_factors(indices: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Row numbers of a full grid in C order -> (N, K) factor values."""
    return np.stack(np.unravel_index(indices, sizes), axis=1).astype(np.int64).reshape(len(indices), len(sizes))


def check_factors(factors: Any, names: tuple[str, ...], sizes: tuple[int, ...]) -> np.ndarray:
    """(N, K) int64 with every column inside its factor's range."""
    array = integer_array("factors", factors, 2)
    if array.shape[1] != len(sizes):
        raise ValueError(f"factors: expected shape (N, {len(sizes)}) for {names}, got {array.shape}")
    bad = (array < 0) | (array >= np.asarray(sizes))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"factors: expected {names[column]} in [0, {sizes[column]}), got {array[row, column]} in row {row}"
        )
    return array


class GridDataset(ImageDataset):
    """A set that holds every combination of its factors once, in C order (the last factor runs fastest)."""

    def __len__(self) -> int:
        return int(np.prod(self.factor_sizes))

    def factors(self, indices: Indices) -> np.ndarray:
        return mixed_radix_factors(check_indices(indices, len(self)), self.factor_sizes)

    def index(self, factors: Any) -> np.ndarray:
        array = check_factors(factors, self.factor_names, self.factor_sizes)
        return np.ravel_multi_index(tuple(array.T), self.factor_sizes).astype(np.int64)


def grid_sizes(path: Any, field: str, factors: np.ndarray) -> tuple[int, ...]:
    """Sizes of the full grid that the (N, K) rows of a file list in C order; ValueError if they do not."""
    sizes = tuple(int(size) for size in factors.max(axis=0) + 1) if len(factors) else ()
    expected = mixed_radix_factors(np.arange(len(factors)), sizes) if np.prod(sizes) == len(factors) else None
    if expected is None or not np.array_equal(expected, factors):
        raise ValueError(
            f"{path}: field {field!r}: expected every combination of the factors once, the last factor fastest; "
            f"got {len(factors)} rows with {sizes} values"
        )
    return sizes
