"""Log-densities under the aggregate posterior: one pass over all pairs forward, two backward, O(S + M) memory."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ._aggregate_backward import _aggregate_backward_kernel, _aggregate_gradients_kernel
from ._aggregate_kernels import (
    _aggregate_finish_kernel,
    _aggregate_forward_kernel,
    _aggregate_posteriors_kernel,
    _aggregate_samples_kernel,
)
from ._launch import check_device, launch, processors, register_limit
from ._layout import ceil_div, next_power_of_two
from ._tuning import tuned

# Points are padded to whole tiles and chunks of any configuration.
PADDING = 128
_MSS = 0


@dataclass(frozen=True, slots=True)
class AggregateConfig:
    """A program owns ``block`` points, one per thread, and passes over the other side in chunks; splits: its parts."""

    block: int = 128
    chunk: int = 32
    num_warps: int = 4
    splits: int = 1


def aggregate_config(
    operation: str, points: int, others: int, dims: int, itemsize: int, device: torch.device
) -> AggregateConfig:
    """Whole warps of points, and parts until some eight programs per processor run.

    The kernels are bound by their exponential per (sample, posterior, dim), whatever the tile. A thread holds a chunk
    of exponents two to five times over in registers; each part costs a pass over (dims, points) memory.
    """
    block = min(max(next_power_of_two(points), 32), 128)
    chunk = (32 if operation == "aggregate_forward" else 16) * 4 // itemsize
    wanted = ceil_div(8 * processors(device), ceil_div(points, block))
    splits = min(max(wanted, 1), ceil_div(others, chunk), 32)
    config = AggregateConfig(block, chunk, max(block // 32, 1), splits)
    return tuned(operation, (points, others, dims, itemsize), config, device)


@functools.lru_cache(maxsize=64)
def _group_layout(labels: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(dims in the order of their groups, where each group begins and the last ends), kept on the device."""
    order = sorted(range(len(labels)), key=lambda dim: labels[dim])
    starts = [0]
    for number in range(max(labels) + 1):
        starts.append(starts[-1] + labels.count(number))
    return tuple(torch.tensor(values, dtype=torch.int32, device=device) for values in (order, starts))


def _layout(groups: Sequence[int], device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
    """(order, starts, number of groups); without groups all dims are one that has no output."""
    if not groups:
        return None, None, 1
    return (*_group_layout(tuple(groups), device), max(groups) + 1)


def _pad(count: int) -> int:
    return ceil_div(count, PADDING) * PADDING


def _check(name: str, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor) -> None:
    for argument, tensor in (("z", z), ("mean", mean), ("logvar", logvar)):
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != z.dtype:
            raise TypeError(f"{name}: {argument} must be float32 or float64 like z, got {tensor.dtype} and {z.dtype}")


def _posteriors(mean: torch.Tensor, logvar: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """(3, D, M padded): mean, r and c."""
    posteriors, dims = mean.shape
    out = mean.new_empty((3, dims, _pad(posteriors)))
    launch(
        _aggregate_posteriors_kernel, dims * out.shape[2] // PADDING, mean.device, mean, logvar, order, out, posteriors,
        dims, out.shape[2], *mean.stride(), *logvar.stride(), BLOCK=PADDING, num_warps=4,
    )  # fmt: skip
    return out


def _samples(z, marginal, grad, order, posteriors, weights, dataset_size) -> torch.Tensor:
    """(1, D, S padded): z; with a gradient (3, D, S padded): z, marginal exponents, their gradient."""
    samples, dims = z.shape
    out = z.new_empty((1 if grad is None else 3, dims, _pad(samples)))
    launch(
        _aggregate_samples_kernel, dims * out.shape[2] // PADDING, z.device, z, None if grad is None else marginal,
        grad, order, out, samples, dims, out.shape[2], *z.stride(), *((0, 0) if grad is None else grad.stride()),
        posteriors, dataset_size, WEIGHTS=weights, BLOCK=PADDING, num_warps=4,
    )  # fmt: skip
    return out


def aggregate_forward(
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    weights: int,
    dataset_size: int,
    offset: int,
    groups: Sequence[int],
    *,
    config: AggregateConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(joint, marginal, grouped) log-densities in nats.

    Args:
        z: ``(S, D)`` samples, float32 or float64, any strides.
        mean, logvar: ``(M, D)`` in z's dtype, M >= 1.
        weights: importance weights, mss 0, mws 1, naive 2; dataset_size: their N.
        offset: sample i was drawn from posterior ``offset + i``.
        groups: per dim the number of its group, or nothing.
        config: launch configuration; a heuristic one by default.
    """
    device = check_device("aggregate_log_density", z, mean, logvar)
    _check("aggregate_log_density", z, mean, logvar)
    (samples, dims), posteriors = z.shape, mean.shape[0]
    order, starts, num_groups = _layout(groups, z.device)
    joint, marginal = z.new_empty((samples,)), z.new_empty((samples, dims))
    grouped = z.new_empty((samples, num_groups if groups else 0))
    if samples == 0:
        return joint, marginal, grouped
    config = config or aggregate_config("aggregate_forward", samples, posteriors, dims, z.element_size(), device)
    rows = dims + 1 + grouped.shape[1]
    posterior = _posteriors(mean, logvar, order)
    points = _samples(z, None, None, order, posteriors, weights, dataset_size)
    padded, samples_padded = posterior.shape[2], points.shape[2]
    tops, sums = z.new_empty((2, config.splits, rows, samples_padded))
    launch(
        _aggregate_forward_kernel, ceil_div(samples, config.block) * config.splits, device, points, posterior, starts,
        tops, sums, dims, num_groups, rows, samples_padded, padded, ceil_div(posteriors, config.chunk), posteriors,
        dataset_size, offset, config.splits, GROUPED=bool(groups), WEIGHTS=weights, BLOCK=config.block,
        CHUNK=config.chunk, num_warps=config.num_warps,
        max_registers=register_limit(config.num_warps),
    )  # fmt: skip
    launch(
        _aggregate_finish_kernel, rows * samples_padded // PADDING, device, tops, sums, order, joint, marginal, grouped,
        samples, dims, num_groups, rows, samples_padded, posteriors, dataset_size, config.splits, WEIGHTS=weights,
        BLOCK=PADDING, num_warps=4,
    )  # fmt: skip
    return joint, marginal, grouped


def aggregate_backward(
    grad_joint: torch.Tensor | None,
    grad_marginal: torch.Tensor | None,
    grad_grouped: torch.Tensor | None,
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    joint: torch.Tensor,
    marginal: torch.Tensor,
    grouped: torch.Tensor,
    weights: int,
    dataset_size: int,
    offset: int,
    groups: Sequence[int],
    mask: int,
    *,
    config: AggregateConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients (dz, dmean, dlogvar) of :func:`aggregate_forward`.

    Args:
        grad_joint, grad_marginal, grad_grouped: upstream gradients of the outputs; None for what nothing depends on.
        joint, marginal, grouped: the forward's outputs.
        mask: bit i asks for output i; the others are empty tensors of size (0,).
        config: of both passes; heuristic ones by default.
    """
    device = check_device("aggregate_log_density_backward", z, mean, logvar, grad_joint, grad_marginal, grad_grouped)
    _check("aggregate_log_density_backward", z, mean, logvar)
    (samples, dims), posteriors = z.shape, mean.shape[0]
    found = [t.new_empty(t.shape if mask >> i & 1 else (0,)) for i, t in enumerate((z, mean, logvar))]
    if grad_grouped is None or not groups:
        # The order of the dims is then free, and the groups have no part in the sums.
        grad_grouped, groups = None, ()
    nothing = grad_joint is None and grad_marginal is None and grad_grouped is None
    if samples == 0 or nothing or mask == 0:
        return tuple(t.zero_() for t in found)
    order, starts, num_groups = _layout(groups, z.device)
    posterior = _posteriors(mean, logvar, order)
    points = _samples(z, marginal.contiguous(), grad_marginal, order, posteriors, weights, dataset_size)
    padded, samples_padded = posterior.shape[2], points.shape[2]
    for of_posteriors in (False, True):
        if not mask & (6 if of_posteriors else 1):
            continue
        count, others = (posteriors, samples) if of_posteriors else (samples, posteriors)
        own = config or aggregate_config("aggregate_backward", count, others, dims, z.element_size(), device)
        count_padded = padded if of_posteriors else samples_padded
        rows = 2 * dims if of_posteriors else dims
        sums = z.new_empty((own.splits, rows, count_padded))
        launch(
            _aggregate_backward_kernel, ceil_div(count, own.block) * own.splits, device, points, posterior, starts,
            None if grad_joint is None else joint.contiguous(), grad_joint,
            None if grad_grouped is None else grouped.contiguous(), grad_grouped, sums, samples, dims, num_groups,
            samples_padded, padded, count_padded, rows, ceil_div(others, own.chunk),
            0 if grad_joint is None else grad_joint.stride(0),
            *((0, 0) if grad_grouped is None else grad_grouped.stride()), posteriors, dataset_size, offset, own.splits,
            MARGINAL=grad_marginal is not None, GROUPED=grad_grouped is not None, POSTERIORS=of_posteriors,
            WEIGHTS=weights, BLOCK=own.block, CHUNK=own.chunk, num_warps=own.num_warps,
            max_registers=register_limit(own.num_warps),
        )  # fmt: skip
        targets = found[1:] if of_posteriors else found[:1]
        asked = [t if mask >> (i + of_posteriors) & 1 else None for i, t in enumerate(targets)]
        launch(
            _aggregate_gradients_kernel, rows * count_padded // PADDING, device, sums, posterior, order, asked[0],
            asked[1] if of_posteriors else None, count, dims, rows, count_padded, own.splits,
            POSTERIORS=of_posteriors, BLOCK=PADDING, num_warps=4,
        )  # fmt: skip
    return tuple(found)
