"""A whole set as uint8 on one device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ._base import ImageDataset

_CHUNK = 8192


class DeviceImages:
    """What :meth:`ImageDataset.to_device` returns: ``images()`` gathers on the device, without a copy from the host.

    ``tensor`` is the uint8 (len, H, W, C) store: 5.9 GB for Shapes3D at 64x64, 3.0 GB for dSprites.
    """

    def __init__(self, dataset: ImageDataset, device: torch.device | str) -> None:
        self.dataset = dataset
        self.device = torch.device(device)
        self.name, self.image_shape = dataset.name, dataset.image_shape
        self.factor_names, self.factor_sizes = dataset.factor_names, dataset.factor_sizes
        count = len(dataset)
        self.tensor = torch.empty((count, *dataset.image_shape), dtype=torch.uint8, device=self.device)
        if self.device.type == "cpu":
            dataset.images(np.arange(count), out=self.tensor.numpy())
            return
        # Pinned memory, so that the copy runs at the speed of the bus; one buffer keeps the host's share small.
        pinned = torch.empty((min(_CHUNK, count), *dataset.image_shape), dtype=torch.uint8)
        if self.device.type == "cuda":
            pinned = pinned.pin_memory()
        for begin in range(0, count, _CHUNK):
            end = min(begin + _CHUNK, count)
            part = pinned[: end - begin]
            dataset.images(np.arange(begin, end), out=part.numpy())
            self.tensor[begin:end].copy_(part)

    def __len__(self) -> int:
        return len(self.tensor)

    def images(self, indices: Any, out: torch.Tensor | None = None) -> torch.Tensor:
        """uint8 (N, H, W, C) on the device; ``indices`` (N,) integers, best an int64 tensor on the same device.

        IndexError for an index out of range on a CPU; a GPU is not asked, since that would wait for it.
        """
        index = torch.as_tensor(indices, device=self.device)
        if index.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"indices: expected int64 or int32, got {index.dtype}")
        if index.dim() != 1:
            raise ValueError(f"indices: expected shape (N,), got {tuple(index.shape)}")
        return torch.index_select(self.tensor, 0, index, out=out)

    def factors(self, indices: Any) -> torch.Tensor:
        """(N, K) int64 factor values on the device."""
        return torch.from_numpy(self.dataset.factors(indices)).to(self.device)

    def index(self, factors: Any) -> torch.Tensor:
        """(N,) int64 row numbers on the device."""
        return torch.from_numpy(self.dataset.index(factors)).to(self.device)
