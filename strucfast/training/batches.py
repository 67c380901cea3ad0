"""Which images make up which step, and fetching them ahead of time."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor


class BatchOrder:
    """The data order as a function of the step, so that resuming at any step needs no replay.

    Epoch e visits all indices in an order drawn from Philox(seed, e); batches run on across epochs, so that every
    step has a full batch. Process ``rank`` of ``world_size`` takes its slice of a batch of ``batch_size * world_size``.

    Args:
        indices: (n,) integers, the training images.
        batch_size: images per step and process.
        seed: any non-negative integer.
    """

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        indices = np.asarray(indices, dtype=np.int64)
        if indices.ndim != 1 or len(indices) == 0:
            raise ValueError(f"indices: expected at least one training image, got an array of shape {indices.shape}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.indices = indices
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, step: int) -> np.ndarray:
        """Indices (batch_size,) of step ``step`` (from 0)."""
        first = (step * self.world_size + self.rank) * self.batch_size
        positions = np.arange(first, first + self.batch_size)
        epochs, places = np.divmod(positions, len(self.indices))
        batch = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            batch[here] = self._epoch(int(epoch))[places[here]]
        return batch

    def _epoch(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._epochs:
                generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
                self._epochs[epoch] = self.indices[generator.permutation(len(self.indices))]
                # prefetching looks at most a few batches into the next epoch
                while len(self._epochs) > 2:
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(epoch)
            return self._epochs[epoch]


class HostBatches:
    """Batches of a data set in host memory, fetched ``depth`` ahead by ``workers`` threads into reused buffers.

    Reused because filling freshly mapped memory costs more than drawing the images.
    """

    def __init__(
        self, dataset: Any, order: BatchOrder, start: int, device: torch.device, workers: int = 1, depth: int = 4
    ) -> None:
        self.dataset = dataset
        self.order = order
        self.device = device
        self._next = start
        self._depth = depth if workers else 0
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="strucfast-batches") if workers else None
        self._pending: deque[Future] = deque()
        pinned = device.type == "cuda"
        shape = (order.batch_size, *dataset.image_shape)
        count = self._depth + 2
        self._free = deque(torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(count))
        self._lent: tuple[Tensor, Any] | None = None

    def next(self) -> Tensor:
        """The next step's images, uint8 (N, H, W, C) on the device; valid until the next call."""
        # a buffer may be filled again once the next batch is asked for, and its copy to the GPU is over
        if self._lent is not None:
            buffer, copied = self._lent
            if copied is not None:
                copied.synchronize()
            self._free.append(buffer)
        while len(self._pending) <= self._depth:
            self._submit()
        images = self._pending.popleft().result()
        copied = None
        batch = images
        if self.device.type == "cuda":
            batch = images.to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._lent = (images, copied)
        return batch

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        indices = self.order(self._next)
        self._next += 1
        buffer = self._free.popleft()
        if self._pool is None:
            future: Future = Future()
            future.set_result(self._fetch(indices, buffer))
        else:
            future = self._pool.submit(self._fetch, indices, buffer)
        self._pending.append(future)

    def _fetch(self, indices: np.ndarray, buffer: Tensor) -> Tensor:
        self.dataset.images(indices, out=buffer.numpy())
        return buffer


class DeviceBatches:
    """Batches of a data set that lies on the GPU whole."""

    def __init__(self, dataset: Any, order: BatchOrder, start: int, device: torch.device) -> None:
        self.dataset = dataset
        self.order = order
        self.device = device
        self._next = start

    def next(self) -> Tensor:
        """The next step's images, uint8 (N, H, W, C) on the device."""
        indices = torch.from_numpy(self.order(self._next))
        self._next += 1
        return self.dataset.images(indices.to(self.device, non_blocking=True))

    def close(self) -> None:
        """Nothing to stop."""


def to_float(images: Tensor | np.ndarray, channels: int | None = None) -> Tensor:
    """Images as the models take them.

    Args:
        images: (N, H, W, C), uint8, or floating point with values in [0, 1].
        channels: C must be this, if given.

    Returns:
        float32 (N, C, H, W) in [0, 1]; its memory is laid out as ``images`` (channels_last), nothing is moved.

    Raises:
        TypeError: another dtype.
        ValueError: an empty batch, a wrong shape, values outside [0, 1] or not finite.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if images.ndim != 4:
        raise ValueError(f"images: expected (N, H, W, C), got shape {tuple(images.shape)}")
    if images.shape[0] == 0:
        raise ValueError(f"images: expected at least one, got an empty batch of shape {tuple(images.shape)}")
    if channels is not None and images.shape[3] != channels:
        raise ValueError(f"images: expected {channels} channels in the last axis, got shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images.permute(0, 3, 1, 2).to(torch.float32).div_(255)
    if not images.is_floating_point():
        raise TypeError(f"images: expected uint8, or floating point in [0, 1], got {images.dtype}")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images: expected values in [0, 1], got [{low.item():.4g}, {high.item():.4g}]")
    return images.permute(0, 3, 1, 2).to(torch.float32)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of the noise of one step: splitmix64 over (seed, step, rank), 63 bits, so that no state need be saved."""
    mask = (1 << 64) - 1
    value = 0
    for part in (seed, step, rank):
        value = (value ^ (part & mask)) + 0x9E3779B97F4A7C15 & mask
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
        value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
        value ^= value >> 31
    return value >> 1
