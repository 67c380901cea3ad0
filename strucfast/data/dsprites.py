"""dSprites: procedural, or the real npz file."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np

from . import _host
from ._base import GridDataset, grid_sizes
from ._files import NpzField, read_rows

FACTOR_NAMES = ("color", "shape", "scale", "orientation", "x", "y")
FACTOR_SIZES = (1, 3, 6, 40, 32, 32)
SHAPES = ("square", "ellipse", "heart")
IMAGE_SIZES = (32, 64)
_POSITIONS = 32
# The centre of a sprite lies in the middle of its 33 x 33 box, so that 32 places fill the 64 pixels exactly.
_BOX = 33
# Pixels at scale 1: half the square's edge, the ellipse's half axes, the heart's unit.
_SQUARE, _ELLIPSE, _HEART = 8.75, (11.6, 6.6), 9.5


def _inside(shape: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    if shape == 0:
        return (np.abs(u) <= _SQUARE) & (np.abs(v) <= _SQUARE)
    if shape == 1:
        return (u / _ELLIPSE[0]) ** 2 + (v / _ELLIPSE[1]) ** 2 <= 1
    # (x^2 + y^2 - 1)^3 <= x^2 y^3 with y upwards, moved so that the middle of its height is the centre.
    x, y = u / _HEART, 0.12 - v / _HEART
    return (x * x + y * y - 1) ** 3 <= x * x * y * y * y


@functools.cache
def sprites(image_size: int) -> np.ndarray:
    """uint8 sprites as the native kernel takes them: (720, 33, 33) for 64 pixels, (720, 2, 2, 17, 17) for 32."""
    v, u = np.mgrid[0:_BOX, 0:_BOX] - (_BOX - 1) / 2
    full = np.zeros((*FACTOR_SIZES[1:4], _BOX, _BOX), np.uint8)
    for shape, scale, turn in np.ndindex(*FACTOR_SIZES[1:4]):
        # 40 angles from 0 to 2 pi with both ends, as in the real file: the last one is the first one again.
        angle = 2 * np.pi * (turn % 39) / 39
        size = 0.5 + 0.1 * scale
        along = (u * np.cos(angle) + v * np.sin(angle)) / size
        across = (v * np.cos(angle) - u * np.sin(angle)) / size
        full[shape, scale, turn] = 255 * _inside(shape, along, across)
    full = full.reshape(-1, _BOX, _BOX)
    if image_size == 64:
        return full
    cells = np.zeros((len(full), 2, 2, _BOX + 1, _BOX + 1), np.uint16)
    for dy, dx in np.ndindex(2, 2):
        cells[:, dy, dx, dy : dy + _BOX, dx : dx + _BOX] = full
    total = cells[..., ::2, :] + cells[..., 1::2, :]
    total = total[..., ::2] + total[..., 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def _render(indices: np.ndarray, out: np.ndarray) -> None:
    size = out.shape[1]
    source, cell = sprites(size), 64 // size
    out[...] = 0
    for image, index in zip(out[..., 0], indices):
        sprite, place = divmod(int(index), _POSITIONS * _POSITIONS)
        x, y = divmod(place, _POSITIONS)
        box = source[sprite] if cell == 1 else source[sprite, y % 2, x % 2]
        image[y // cell : y // cell + box.shape[0], x // cell : x // cell + box.shape[1]] = box


def _open(path: Path) -> tuple[NpzField, tuple[int, ...]]:
    images, classes = NpzField(path, "imgs", bits=True), NpzField(path, "latents_classes")
    images.expect(np.uint8, (None, 64, 64))
    classes.expect(np.integer, (images.shape[0], len(FACTOR_NAMES)))
    values = NpzField(path, "latents_values")
    values.expect(np.floating, (images.shape[0], len(FACTOR_NAMES)))
    return images, grid_sizes(path, "latents_classes", classes.read(slice(None)).astype(np.int64))


class DSprites(GridDataset):
    """737,280 binary images of one sprite (Matthey et al., "dSprites", 2017).

    Factors: color 1, shape 3 (square, ellipse, heart), scale 6 (0.5 to 1), orientation 40 (0 to 2 pi, both ends), x 32,
    y 32, with row numbers as in the real file. Images are uint8 0 or 255 (the real file's 0 and 1 times 255), like
    every other set here; at ``image_size=32`` they are area averages with the grey levels in between.

    Args:
        path: a real ``dsprites_*.npz`` (``imgs`` uint8 0/1 (N,64,64), ``latents_classes``, ``latents_values`` (N,6));
            None draws the sprites. The published file is compressed: its images are inflated once, on first use, and
            kept at one bit a pixel (0.38 GB). A file stored without compression is memory-mapped instead.
        image_size: 64 or 32.

    Raises:
        ValueError: another image_size; a file whose fields are missing, damaged or have another shape or dtype.
        FileNotFoundError: no such file.
    """

    def __init__(self, path: str | os.PathLike | None = None, image_size: int = 64) -> None:
        if image_size not in IMAGE_SIZES:
            raise ValueError(f"image_size: expected one of {IMAGE_SIZES}, got {image_size!r}")
        self.name = "dsprites"
        self.path = None if path is None else Path(path)
        self.factor_names, self.factor_sizes = FACTOR_NAMES, FACTOR_SIZES
        self.image_shape = (image_size, image_size, 1)
        self._file: NpzField | None = None
        if self.path is not None:
            self._file, self.factor_sizes = _open(self.path)
        else:
            # Drawn before DataLoader workers fork, so that they share them.
            sprites(image_size)

    def _read(self, indices: np.ndarray, out: np.ndarray) -> None:
        if self._file is not None:
            read_rows(self._file, indices, out, scale=255)
            return
        module = _host.host()
        if module is None:
            _render(indices, out)
        else:
            module.render_dsprites(sprites(self.image_shape[0]), indices, out, _host.threads(module))
