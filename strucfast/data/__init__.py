"""Image sets addressed by row number: procedural Shapes3D and dSprites, the real files, and the user's own images."""

from ._base import ImageDataset
from ._split import split
from .shapes3d import Shapes3D

__all__ = ["ImageDataset", "Shapes3D", "split"]
