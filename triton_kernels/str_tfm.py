"""All per-variable MLPs of a Str-Tfm and their scale map: one launch forward, two backward.

A program owns one variable and one tile of samples and runs the layers one after the other. The pre-activations of the
hidden layers pass through global memory, where the backward needs them anyway; between layers a barrier makes them
visible to the whole program, and they are read back from cache. Weight gradients are matrix products over the samples
in a fixed order, so they are deterministic without atomics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ._launch import check_device, launch, register_limit
from ._layout import ceil_div
from ._reduce import column_sums
from ._str_tfm_backward import _str_tfm_backward_kernel, _str_tfm_weight_kernel
from ._str_tfm_forward import _str_tfm_forward_kernel
from ._tuning import tuned

# The layers are unrolled at compile time; widths are loops and have no limit.
MAX_LAYERS = 8


@dataclass(frozen=True, slots=True)
class StrTfmConfig:
    """Tile of a matrix product: samples x outputs, its step over the summed dimension, and its warps.

    block_samples: samples per step of the weight gradients; splits: into how many parts their sum is cut.
    """

    block_m: int = 16
    block_n: int = 32
    block_k: int = 32
    block_samples: int = 16
    num_warps: int = 4
    splits: int = 1


def _check(name: str, u: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> list[int]:
    """The widths (k, hidden..., 2C) of the MLPs."""
    if not 1 <= len(weights) <= MAX_LAYERS or len(biases) != len(weights):
        raise ValueError(
            f"{name}: the Triton kernels take 1 to {MAX_LAYERS} layers and as many biases, "
            f"got {len(weights)} weights and {len(biases)} biases"
        )
    if u.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: u must be float32 or float64, got {u.dtype}")
    for argument, tensors in (("weights", weights), ("biases", biases)):
        for index, tensor in enumerate(tensors):
            if tensor.dtype != u.dtype:
                raise TypeError(f"{name}: {argument}[{index}] must be {u.dtype} (u's dtype), got {tensor.dtype}")
    return [u.shape[2], *(weight.shape[1] for weight in weights)]


def _constants(widths: list[int], activation: int, scale_map: int) -> dict[str, object]:
    hidden = widths[1:-1]
    return {
        "WIDTHS": tuple(widths),
        "OFFSETS": tuple(sum(hidden[:index]) for index in range(len(hidden) + 1)),
        "HIDDEN": sum(hidden),
        "LAYERS": len(widths) - 1,
        "ACTIVATION": activation,
        "SCALE_MAP": scale_map,
    }


def str_tfm_config(
    operation: str, samples: int, variables: int, widths: list[int], itemsize: int, device: torch.device
) -> StrTfmConfig:
    """Small tiles, since d x N / 16 programs should fill the device; a long sum over samples is cut every 1024."""
    splits = min(ceil_div(samples, 1024), 64)
    config = StrTfmConfig(splits=splits)
    if itemsize == 8:
        # A dot without tensor cores keeps its operands in registers; float64 ones fit with half the depth.
        config = StrTfmConfig(block_k=16, splits=splits)
    return tuned(operation, (samples, variables, *widths, itemsize), config, device)


def _resources(config: StrTfmConfig) -> dict[str, int]:
    # The products need more registers than ptxas gives the kernels of its own accord, and programs are few.
    return {"num_warps": config.num_warps, "max_registers": register_limit(config.num_warps)}


def str_tfm_forward(
    u: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    activation: int,
    scale_map: int,
    save: bool,
    *,
    config: StrTfmConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scale, shift, saved) of the ``d`` MLPs.

    Args:
        u: ``(N, d, k)``, float32 or float64.
        weights, biases: per layer ``(d, out, in)`` and ``(d, out)`` in u's dtype; the last out is 2C.
        activation, scale_map: their codes (see ``_math``).
        save: whether to return the hidden pre-activations ``(d, N, sum of hidden widths)``; else saved has size (0,).
        config: launch configuration; the default one otherwise.

    Raises:
        ValueError: no layer, or more than 8.
    """
    device = check_device("str_tfm", u, *weights, *biases)
    widths = _check("str_tfm", u, weights, biases)
    samples, variables = u.shape[:2]
    constants = _constants(widths, activation, scale_map)
    scale = u.new_empty((samples, variables, widths[-1] // 2))
    shift = torch.empty_like(scale)
    # The layers exchange their results through this buffer, so it exists even when it is not kept.
    saved = u.new_empty((variables, samples, constants["HIDDEN"]))
    if scale.numel() > 0:
        config = config or str_tfm_config("str_tfm_forward", samples, variables, widths, u.element_size(), device)
        launch(
            _str_tfm_forward_kernel,
            variables * ceil_div(samples, config.block_m),
            device,
            u.contiguous(),
            tuple(weight.contiguous() for weight in weights),
            tuple(bias.contiguous() for bias in biases),
            scale,
            shift,
            saved,
            samples,
            variables,
            **constants,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            **_resources(config),
        )
    return scale, shift, saved if save else u.new_empty(0)


def str_tfm_backward(
    grad_scale: torch.Tensor,
    grad_shift: torch.Tensor,
    u: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    scale: torch.Tensor,
    saved: torch.Tensor,
    activation: int,
    scale_map: int,
    mask: int,
    *,
    config: StrTfmConfig | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """(du, dweights, dbiases) of :func:`str_tfm_forward`.

    Args:
        grad_scale, grad_shift: gradients of its outputs, ``(N, d, C)``.
        scale, saved: its outputs (with save=True).
        mask: bit 0 asks for du, bit 1 for dweights and dbiases; the others are empty tensors of size (0,).
        config: launch configuration; a heuristic one by default.
    """
    name = "str_tfm_backward"
    device = check_device(name, grad_scale, grad_shift, u, *weights, *biases, scale, saved)
    widths = _check(name, u, weights, biases)
    samples, variables = u.shape[:2]
    constants = _constants(widths, activation, scale_map)
    hidden = constants["HIDDEN"]
    if saved.numel() != variables * samples * hidden:
        raise ValueError(
            f"{name}: saved must be ({variables}, {samples}, {hidden}) as the forward with save=True returns it, "
            f"got {tuple(saved.shape)}"
        )
    u, scale, saved = u.contiguous(), scale.contiguous(), saved.contiguous()
    grad_scale, grad_shift = grad_scale.contiguous(), grad_shift.contiguous()
    weights = tuple(weight.contiguous() for weight in weights)
    du = torch.empty_like(u) if mask & 1 else u.new_empty(0)
    dweights = [torch.empty_like(weight) if mask & 2 else u.new_empty(0) for weight in weights]
    dbiases = [u.new_empty(bias.shape) if mask & 2 else u.new_empty(0) for bias in biases]
    if grad_scale.numel() == 0 or u.numel() == 0:
        return du.zero_(), [d.zero_() for d in dweights], [d.zero_() for d in dbiases]
    config = config or str_tfm_config(name, samples, variables, widths, u.element_size(), device)
    gradients = torch.empty_like(saved)
    if mask & 1 or (mask & 2 and hidden > 0):
        launch(
            _str_tfm_backward_kernel,
            variables * ceil_div(samples, config.block_m),
            device,
            grad_scale,
            grad_shift,
            weights,
            scale,
            saved,
            gradients,
            du if mask & 1 else None,
            samples,
            variables,
            **constants,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            **_resources(config),
        )
    if not mask & 2:
        return du, dweights, dbiases
    tiles = [0]
    for inputs, outputs in pairwise(widths):
        across = ceil_div(inputs, 16 if inputs <= 16 else config.block_n)
        tiles.append(tiles[-1] + across * ceil_div(outputs, config.block_n))
    chunk = ceil_div(ceil_div(samples, config.block_samples), config.splits) * config.block_samples
    splits = ceil_div(samples, chunk)
    dweight_targets, dbias_targets = dweights, dbiases
    if splits > 1:
        dweight_targets = [u.new_empty((splits, weight.numel())) for weight in weights]
        dbias_targets = [u.new_empty((splits, bias.numel())) for bias in biases]
    launch(
        _str_tfm_weight_kernel,
        splits * variables * tiles[-1],
        device,
        grad_scale,
        grad_shift,
        u,
        scale,
        saved,
        gradients,
        tuple(dweight_targets),
        tuple(dbias_targets),
        samples,
        variables,
        chunk,
        splits,
        TILES=tuple(tiles),
        **constants,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_samples,
        **_resources(config),
    )
    if splits > 1:
        for partials, sums in ((dweight_targets, dweights), (dbias_targets, dbiases)):
            for partial, total in zip(partials, sums):
                column_sums(partial, total, None, total, splits, total.numel())
    return du, dweights, dbiases
