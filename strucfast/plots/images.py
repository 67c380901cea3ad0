"""Arrays of pixels: conversion, grids, and a PNG writer that needs nothing but numpy and zlib."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch


def to_uint8(images: torch.Tensor | np.ndarray) -> np.ndarray:
    """Images as a uint8 array (N, H, W, C) with C 1, 3 or 4.

    A torch tensor is what a model returns: floating point, (N, C, H, W), values in [0, 1] (clipped).
    A numpy array is what a data set returns: uint8, (N, H, W, C), passed through.

    Raises TypeError for another type or dtype and ValueError for another shape or for NaN.
    """
    if isinstance(images, torch.Tensor):
        if not images.is_floating_point():
            raise TypeError(f"images: expected a floating-point tensor (N, C, H, W) in [0, 1], got {images.dtype}")
        if images.dim() != 4 or images.shape[1] not in (1, 3, 4):
            raise ValueError(f"images: expected a tensor of shape (N, 1 | 3 | 4, H, W), got {tuple(images.shape)}")
        values = images.detach().float().cpu().permute(0, 2, 3, 1).numpy()
        if np.isnan(values).any():
            raise ValueError("images: expected values in [0, 1], got NaN")
        return np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = f"an array of {images.dtype}" if isinstance(images, np.ndarray) else type(images).__name__
        raise TypeError(f"images: expected a floating-point torch tensor or a uint8 numpy array, got {got}")
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4):
        raise ValueError(f"images: expected an array of shape (N, H, W, 1 | 3 | 4), got {images.shape}")
    return images


def image_grid(
    images: torch.Tensor | np.ndarray, columns: int = 8, padding: int = 2, background: int = 255
) -> np.ndarray:
    """Lays N images out row by row: uint8 (rows*(H+padding)-padding, columns*(W+padding)-padding, C).

    ``columns`` is cut to N; free cells of the last row have the ``background`` value (0..255).
    Raises ValueError for no images, columns < 1, padding < 0 or a background outside 0..255.
    """
    pixels = to_uint8(images)
    if len(pixels) == 0:
        raise ValueError("images: expected at least one image, got none")
    if columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    if padding < 0:
        raise ValueError(f"padding: expected 0 or more pixels, got {padding}")
    if not 0 <= background <= 255:
        raise ValueError(f"background: expected a value in 0..255, got {background}")
    count, height, width, channels = pixels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    # one padding more on the right and below keeps every cell the same size; it is cut off at the end
    cells = np.full((rows * columns, height + padding, width + padding, channels), background, np.uint8)
    cells[:count, :height, :width] = pixels
    cells = cells.reshape(rows, columns, height + padding, width + padding, channels).transpose(0, 2, 1, 3, 4)
    grid = cells.reshape(rows * (height + padding), columns * (width + padding), channels)
    return np.ascontiguousarray(grid[: grid.shape[0] - padding, : grid.shape[1] - padding])


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 image (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as the bytes of a PNG file."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"image: expected a uint8 numpy array, got {got}")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(f"image: expected shape (H, W[, 1 | 3 | 4]) with at least one pixel, got {image.shape}")
    height, width, channels = image.shape
    left = np.zeros_like(image)
    left[:, 1:] = image[:, :-1]
    above = np.zeros_like(image)
    above[1:] = image[:-1]
    # filters 0 (none), 1 (difference to the left), 2 (difference to above); flat and noisy images want different ones
    candidates = []
    for number, filtered in enumerate((image, image - left, image - above)):
        rows = np.empty((height, 1 + width * channels), np.uint8)
        rows[:, 0] = number
        rows[:, 1:] = filtered.reshape(height, -1)
        candidates.append(zlib.compress(rows.tobytes(), 9))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = min(candidates, key=len)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def save_png(path: str | os.PathLike[str], image: np.ndarray) -> Path:
    """Writes a uint8 image (see :func:`encode_png`) atomically and returns the path. Raises OSError naming the path."""
    return write_atomically(path, encode_png(image), "image")


def write_atomically(path: str | os.PathLike[str], data: bytes, what: str) -> Path:
    """Puts ``data`` at ``path`` through a temporary file beside it, so that a reader never sees half of it.

    Missing parent folders are made. Raises OSError (``path: cannot write the <what> ...``) with the system's reason.
    """
    target = Path(path)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder, expected a file name")
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; a report is written with the permissions any new file would get
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OSError(f"path: cannot write the {what} to {target}: {error.strerror or error}") from error
    return target
