"""Data parallel training under torchrun: plain torch.distributed, one flat all-reduce per step."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class World:
    """The processes that train together; alone without torchrun."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their mean over the processes, in one all-reduce."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        pieces = flat.split([tensor.numel() for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Give every process the tensors of rank 0."""
        if self.size == 1:
            return
        for tensor in tensors:
            # a collective needs dense row-major memory
            buffer = tensor.detach().contiguous()
            torch.distributed.broadcast(buffer, 0)
            tensor.detach().copy_(buffer)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            torch.distributed.barrier()


def join(device: torch.device) -> World:
    """Join the processes torchrun started (RANK, WORLD_SIZE, ... in the environment), or be alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World()
    if not torch.distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())


def leave() -> None:
    """Leave the processes that :func:`join` joined, before the interpreter ends; nothing where there are none."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    gloo = torch.distributed.get_backend() == "gloo"
    torch.distributed.destroy_process_group()
    if gloo:
        # Gloo's threads still hold the last collective's tensors. To let go of them they need the interpreter; if it is
        # ending by then, they abort the process (seen in one of seven runs on a busy machine).
        time.sleep(0.2)
