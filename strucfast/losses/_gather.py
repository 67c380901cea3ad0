"""Rows of every process of torch.distributed, differentiably."""

import torch
from torch import distributed


class _AllGather(torch.autograd.Function):
    """(B, ...) of each process -> (world B, ...), in the order of the ranks."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        # Every process used these rows in its own loss, so each owner needs the sum of all processes' gradients.
        grad = grad.contiguous().clone()
        distributed.all_reduce(grad)
        return grad.chunk(distributed.get_world_size())[distributed.get_rank()]


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) where torch.distributed is not in use."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The (B, ...) rows of all processes, (world B, ...); every process must call it with the same B.

    The backward sums the gradients of all processes: averaged over the processes, as data parallel training does,
    parameter gradients are those of one process that sees the whole batch.
    """
    return _AllGather.apply(rows.contiguous())
