"""Image sets addressed by row number: procedural Shapes3D and dSprites, the real files, and the user's own images."""

from ._base import ImageDataset
from ._build import build
from ._device import DeviceImages
from ._split import split
from .arrays import Arrays
from .dsprites import DSprites
from .folder import ImageFolder
from .shapes3d import Shapes3D

__all__ = ["Arrays", "DSprites", "DeviceImages", "ImageDataset", "ImageFolder", "Shapes3D", "build", "split"]
