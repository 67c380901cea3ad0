"""A folder of image files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ._base import ImageDataset, check_indices
from ._resize import fit

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'strucfast[images]'") from error
    return Image


class ImageFolder(ImageDataset):
    """PNG and JPEG files below a folder, in the order of their paths, decoded when they are asked for.

    Args:
        path: the folder; sub-folders are searched too.
        image_size: each image's middle square is area-averaged to this side.
        channels: 3 or 1; None takes 1 where the first file is grey, else 3.

    Raises:
        ValueError: no image in the folder; a file that is no image or smaller than ``image_size``, named when read.
        ImportError: Pillow is missing. FileNotFoundError, NotADirectoryError: no such folder.
    """

    def __init__(self, path: str | os.PathLike, image_size: int = 64, channels: int | None = None) -> None:
        _pillow()
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no such folder")
        if not self.path.is_dir():
            raise NotADirectoryError(f"{self.path}: expected a folder, got a file")
        if image_size < 1:
            raise ValueError(f"image_size: expected a positive number, got {image_size}")
        if channels not in (None, 1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {channels}")
        self.files = sorted(file for file in self.path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not self.files:
            raise ValueError(f"{self.path}: expected image files ({', '.join(SUFFIXES)}), found none")
        self.name = self.path.resolve().name
        self.factor_names = self.factor_sizes = ()
        self.image_shape = (image_size, image_size, channels or self._channels_of(self.files[0]))

    @staticmethod
    def _channels_of(file: Path) -> int:
        try:
            with _pillow().open(file) as image:
                return 1 if image.mode in ("1", "L", "I;16") else 3
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: not a readable image ({error})") from error

    def __len__(self) -> int:
        return len(self.files)

    def _decode(self, file: Path) -> np.ndarray:
        size, _, channels = self.image_shape
        mode = "L" if channels == 1 else "RGB"
        try:
            with _pillow().open(file) as image:
                # JPEG can be decoded at a fraction of its size, much faster, as long as enough pixels stay.
                image.draft(mode, (2 * size, 2 * size))
                pixels = np.asarray(image.convert(mode))
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{file}: not a readable image ({error})") from error
        try:
            return fit(pixels.reshape(1, *pixels.shape[:2], channels), size)[0]
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def _read(self, indices: np.ndarray, out: np.ndarray) -> None:
        for position, index in enumerate(indices):
            out[position] = self._decode(self.files[index])

    def factors(self, indices: Any) -> np.ndarray:
        return np.empty((len(check_indices(indices, len(self))), 0), np.int64)

    def index(self, factors: Any) -> np.ndarray:
        raise ValueError(f"{self.name}: the factors of these images are not known")
