"""3D Shapes: procedural, or the real ``3dshapes.h5``."""

from __future__ import annotations

import colorsys
import functools
import os
from pathlib import Path

import numpy as np

from . import _host, _shapes3d_scene
from ._base import GridDataset, grid_sizes
from ._files import H5Field, read_rows

FACTOR_NAMES = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
FACTOR_SIZES = (10, 10, 10, 8, 4, 15)
SHAPES = ("cube", "cylinder", "sphere", "capsule")
IMAGE_SIZES = (32, 64, 128)
# Floor, wall, object: the object is the most saturated, so that it stands out even against a wall of its own hue.
_SATURATION = (0.75, 0.62, 0.9)


@functools.cache
def palette() -> np.ndarray:
    """(3, 10, 3) uint16: material x hue x rgb, 256 = full."""
    rgb = [[colorsys.hsv_to_rgb(hue / 10, saturation, 1.0) for hue in range(10)] for saturation in _SATURATION]
    return np.rint(256 * np.asarray(rgb)).astype(np.uint16)


@functools.cache
def _native_layers(image_size: int) -> np.ndarray:
    module = _host.host()
    return module.shapes3d_geometry(image_size, _host.threads(module))


def _open(path: Path) -> tuple[H5Field, tuple[int, ...]]:
    images, labels = H5Field(path, "images"), H5Field(path, "labels")
    images.expect(np.uint8, (None, 64, 64, 3))
    labels.expect(np.floating, (images.shape[0], len(FACTOR_NAMES)))
    # Labels are physical values (hues, scale, degrees); their ranks are the factor values.
    ranks = [np.unique(column, return_inverse=True)[1] for column in labels.read(slice(None)).T]
    return images, grid_sizes(path, "labels", np.stack(ranks, axis=1))


class Shapes3D(GridDataset):
    """480,000 images of a room with one object (Burgess & Kim, "3D Shapes Dataset", 2018).

    Factors: floor hue 10, wall hue 10, object hue 10, scale 8, shape 4 (cube, cylinder, sphere, capsule), camera
    orientation 15 (-30 to 30 degrees), with row numbers as in the real file.

    Args:
        path: a real ``3dshapes.h5`` (``images`` uint8 (N,64,64,3), ``labels`` float64 (N,6)); None renders the scene
            with ray-cast, anti-aliased geometry, recoloured on the fly: nothing to download, nothing to load.
        image_size: 32, 64 or 128 rendered; 64 or 32 (area average) from a file.

    Raises:
        ValueError: another image_size; a file whose fields are missing or have another shape or dtype.
        FileNotFoundError: no such file.
    """

    def __init__(self, path: str | os.PathLike | None = None, image_size: int = 64) -> None:
        sizes = IMAGE_SIZES if path is None else (32, 64)
        if image_size not in sizes:
            raise ValueError(f"image_size: expected one of {sizes}, got {image_size!r}")
        self.name = "shapes3d"
        self.path = None if path is None else Path(path)
        self.factor_names, self.factor_sizes = FACTOR_NAMES, FACTOR_SIZES
        self.image_shape = (image_size, image_size, 3)
        self._file: H5Field | None = None
        if self.path is not None:
            self._file, self.factor_sizes = _open(self.path)
        elif _host.host() is not None:
            # Built before DataLoader workers fork, so that they share it.
            _native_layers(image_size)

    def _read(self, indices: np.ndarray, out: np.ndarray) -> None:
        if self._file is not None:
            read_rows(self._file, indices, out)
            return
        module = _host.host()
        if module is None:
            _shapes3d_scene.render(indices, palette(), out)
        else:
            size = self.image_shape[0]
            module.render_shapes3d(_native_layers(size), palette(), indices, out, _host.threads(module))
