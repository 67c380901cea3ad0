"""From a word on the command line to a data set."""

import os
from pathlib import Path

from ._base import ImageDataset
from .arrays import Arrays
from .dsprites import DSprites
from .folder import ImageFolder
from .shapes3d import Shapes3D

_SETS = {"shapes3d": Shapes3D, "dsprites": DSprites}
_FILES = (".npy", ".npz", ".h5", ".hdf5")


def build(spec: str | os.PathLike | ImageDataset, image_size: int = 64) -> ImageDataset:
    """The data set that ``spec`` names.

    Args:
        spec: "shapes3d" or "dsprites" (procedural), "shapes3d:FILE.h5" or "dsprites:FILE.npz" (the real files), a
            folder of images, or a .npy, .npz, .h5 file of images. A data set is handed through, if its size fits.
        image_size: side of the images.

    Raises:
        ValueError: an unknown name, a file that does not fit. FileNotFoundError: no such file or folder.
    """
    if isinstance(spec, ImageDataset):
        if spec.image_shape[:2] != (image_size, image_size):
            raise ValueError(f"image_size: expected {spec.image_shape[0]}, the size of {spec!r}, got {image_size}")
        return spec
    name, colon, path = os.fspath(spec).partition(":")
    if name in _SETS:
        if colon and not path:
            raise ValueError(f"data: expected a path after {name + ':'!r}")
        return _SETS[name](path or None, image_size=image_size)
    file = Path(spec)
    if file.is_dir():
        return ImageFolder(file, image_size)
    if file.suffix in _FILES:
        return Arrays(file, image_size)
    kinds = f"{', '.join(_SETS)}, NAME:FILE, a folder of images or a file ({', '.join(_FILES)})"
    if file.exists() or file.suffix or os.sep in os.fspath(spec):
        problem = ValueError if file.exists() else FileNotFoundError
        raise problem(f"data: expected {kinds}, got {os.fspath(spec)!r}")
    raise ValueError(f"data: expected {kinds}, got {os.fspath(spec)!r}")
