"""Square crops and area averages of uint8 images."""

import functools

import numpy as np


@functools.lru_cache(maxsize=32)
def _weights(size: int, to: int) -> np.ndarray:
    """(to, size) float32: the share of each input pixel in each output pixel."""
    edges = np.linspace(0, size, to + 1)
    cells = np.arange(size)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return (np.clip(overlap, 0, None) * (to / size)).astype(np.float32)


def fit(images: np.ndarray, size: int) -> np.ndarray:
    """The middle square of (N, H, W, C) uint8 images as (N, size, size, C), by area average; never enlarges."""
    height, width = images.shape[1:3]
    side = min(height, width)
    if side < size:
        raise ValueError(
            f"image_size: expected at most {side}, the shorter side of the {height}x{width} images, got {size}"
        )
    top, left = (height - side) // 2, (width - side) // 2
    images = images[:, top : top + side, left : left + side]
    if side == size:
        return images
    if side == 2 * size:
        total = images[:, ::2].astype(np.uint16)
        total += images[:, 1::2]
        total = total[:, :, ::2] + total[:, :, 1::2]
        return ((total + 2) >> 2).astype(np.uint8)
    weights = _weights(side, size)
    rows = np.tensordot(weights, images.astype(np.float32), axes=(1, 1))
    both = np.tensordot(weights, rows, axes=(1, 2))
    return np.clip(both.transpose(2, 1, 0, 3) + 0.5, 0, 255).astype(np.uint8)
