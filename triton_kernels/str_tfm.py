"""All per-variable MLPs of a Str-Tfm and their scale map: one launch forward, two backward.

A program owns one variable and one tile of samples and runs the layers one after the other. The pre-activations of the
hidden layers pass through global memory, where the backward needs them anyway; between layers a barrier makes them
visible to the whole program, and they are read back from cache. Weight gradients are matrix products over the samples
in a fixed order, so they are deterministic without atomics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ._launch import check_device, launch, register_limit
from ._layout import ceil_div
from ._math import activate, activate_with_slope, load, map_scale, map_scale_slope
from ._reduce import column_sums
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


@triton.jit
def _dot(a, b, accumulator):
    # ieee: full float32 products; the default of a float32 dot would be TF32 with 10 bits.
    return tl.dot(a, b, accumulator, input_precision="ieee", out_dtype=accumulator.dtype)


@triton.jit
def _linear(
    input_ptr,
    input_row,
    in_samples,
    weight_ptr,
    bias_ptr,
    output,
    in_outputs,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """act(input) @ weight^T + bias for the samples ``input_row`` and the rows ``output`` of the weight."""
    accumulator = tl.zeros([input_row.shape[0], output.shape[0]], input_ptr.dtype.element_ty)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = load(input_ptr + input_row[:, None] + k[None, :], in_samples[:, None] & (k < K)[None, :])
        # Every activation maps 0 to 0, so the padding stays 0.
        a = activate(a, ACTIVATION)
        b = load(weight_ptr + output[None, :] * K + k[:, None], in_outputs[None, :] & (k < K)[:, None])
        accumulator = _dot(a, b, accumulator)
    return accumulator + load(bias_ptr + output, in_outputs)[None, :]


@triton.jit
def _forward_layer(
    u_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    saved_ptr,
    samples,
    variables,
    variable,
    sample,
    LAYER: tl.constexpr,
    WIDTHS: tl.constexpr,
    OFFSETS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAYERS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE_MAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    K: tl.constexpr = WIDTHS[LAYER]
    OUT: tl.constexpr = WIDTHS[LAYER + 1]
    STEP_K: tl.constexpr = 16 if K <= 16 else BLOCK_K
    INPUT_ACTIVATION: tl.constexpr = 0 if LAYER == 0 else ACTIVATION
    weight_ptr += variable * OUT * K
    bias_ptr += variable * OUT
    in_samples = sample < samples
    saved_row = (variable * samples + sample) * HIDDEN
    if LAYER == 0:
        input_ptr = u_ptr
        input_row = (sample * variables + variable) * K
    else:
        # The previous layer's results, written by other threads of this program, are read below.
        tl.debug_barrier()
        input_ptr = saved_ptr
        input_row = saved_row + OFFSETS[LAYER - 1]
    if LAYER < LAYERS - 1:
        for start in range(0, OUT, BLOCK_N):
            output = start + tl.arange(0, BLOCK_N).to(tl.int64)
            in_outputs = output < OUT
            result = _linear(
                input_ptr, input_row, in_samples, weight_ptr, bias_ptr, output, in_outputs,
                K, INPUT_ACTIVATION, STEP_K,
            )  # fmt: skip
            target = saved_row[:, None] + OFFSETS[LAYER] + output[None, :]
            tl.store(saved_ptr + target, result, mask=in_samples[:, None] & in_outputs[None, :])
    else:
        C: tl.constexpr = OUT // 2
        for start in range(0, C, BLOCK_N):
            output = start + tl.arange(0, BLOCK_N).to(tl.int64)
            in_outputs = output < C
            target = ((sample * variables + variable) * C)[:, None] + output[None, :]
            mask = in_samples[:, None] & in_outputs[None, :]
            logits = _linear(
                input_ptr, input_row, in_samples, weight_ptr, bias_ptr, output, in_outputs,
                K, INPUT_ACTIVATION, STEP_K,
            )  # fmt: skip
            tl.store(scale_ptr + target, map_scale(logits, SCALE_MAP), mask=mask)
            shift = _linear(
                input_ptr, input_row, in_samples, weight_ptr + C * K, bias_ptr + C, output, in_outputs,
                K, INPUT_ACTIVATION, STEP_K,
            )  # fmt: skip
            tl.store(shift_ptr + target, shift, mask=mask)


@triton.jit
def _str_tfm_forward_kernel(
    u_ptr,
    weight_ptrs,
    bias_ptrs,
    scale_ptr,
    shift_ptr,
    saved_ptr,
    samples,
    variables,
    WIDTHS: tl.constexpr,
    OFFSETS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAYERS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE_MAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid = tl.program_id(0)
    variable = (pid % variables).to(tl.int64)
    sample = (pid // variables).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    for layer in tl.static_range(LAYERS):
        _forward_layer(
            u_ptr, weight_ptrs[layer], bias_ptrs[layer], scale_ptr, shift_ptr, saved_ptr,
            samples, variables, variable, sample,
            layer, WIDTHS, OFFSETS, HIDDEN, LAYERS, ACTIVATION, SCALE_MAP, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit
def _output_gradient(
    grad_scale_ptr, grad_shift_ptr, scale_ptr, row, output, mask, C: tl.constexpr, SCALE_MAP: tl.constexpr
):
    """Gradient of the last layer's 2C outputs: the logits' first, the shifts' after them."""
    is_logit = output < C
    logit = row[:, None] + output[None, :]
    scale = load(scale_ptr + logit, mask & is_logit[None, :])
    grad_scale = load(grad_scale_ptr + logit, mask & is_logit[None, :])
    grad_shift = load(grad_shift_ptr + logit - C, mask & (output >= C)[None, :])
    # Where there is no logit both loads gave 0; the slope may be anything finite.
    return grad_scale * map_scale_slope(scale, SCALE_MAP) + grad_shift


@triton.jit
def _backward_layer(
    grad_scale_ptr,
    grad_shift_ptr,
    weight_ptr,
    scale_ptr,
    saved_ptr,
    gradient_ptr,
    du_ptr,
    samples,
    variables,
    variable,
    sample,
    LAYER: tl.constexpr,
    WIDTHS: tl.constexpr,
    OFFSETS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAYERS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE_MAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    IN: tl.constexpr = WIDTHS[LAYER]
    OUT: tl.constexpr = WIDTHS[LAYER + 1]
    STEP_K: tl.constexpr = 16 if OUT <= 16 else BLOCK_K
    STEP_N: tl.constexpr = 16 if IN <= 16 else BLOCK_N
    in_samples = sample < samples
    saved_row = (variable * samples + sample) * HIDDEN
    if LAYER < LAYERS - 1:
        # The gradients of the layer after this one, written by other threads of this program, are read below.
        tl.debug_barrier()
    for start in range(0, IN, STEP_N):
        column = start + tl.arange(0, STEP_N).to(tl.int64)
        in_columns = column < IN
        accumulator = tl.zeros([sample.shape[0], STEP_N], grad_scale_ptr.dtype.element_ty)
        for begin in range(0, OUT, STEP_K):
            k = begin + tl.arange(0, STEP_K).to(tl.int64)
            known = in_samples[:, None] & (k < OUT)[None, :]
            if LAYER == LAYERS - 1:
                row = (sample * variables + variable) * (OUT // 2)
                a = _output_gradient(grad_scale_ptr, grad_shift_ptr, scale_ptr, row, k, known, OUT // 2, SCALE_MAP)
            else:
                a = load(gradient_ptr + saved_row[:, None] + OFFSETS[LAYER] + k[None, :], known)
            place = variable * OUT * IN + k[:, None] * IN + column[None, :]
            b = load(weight_ptr + place, (k < OUT)[:, None] & in_columns[None, :])
            accumulator = _dot(a, b, accumulator)
        mask = in_samples[:, None] & in_columns[None, :]
        if LAYER > 0:
            place = saved_row[:, None] + OFFSETS[LAYER - 1] + column[None, :]
            value, slope = activate_with_slope(load(saved_ptr + place, mask), ACTIVATION)
            tl.store(gradient_ptr + place, accumulator * slope, mask=mask)
        else:
            place = ((sample * variables + variable) * IN)[:, None] + column[None, :]
            tl.store(du_ptr + place, accumulator, mask=mask)


@triton.jit
def _str_tfm_backward_kernel(
    grad_scale_ptr,
    grad_shift_ptr,
    weight_ptrs,
    scale_ptr,
    saved_ptr,
    gradient_ptr,
    du_ptr,
    samples,
    variables,
    WIDTHS: tl.constexpr,
    OFFSETS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAYERS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE_MAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # gradient_ptr gets the gradients of the hidden pre-activations, laid out like saved.
    pid = tl.program_id(0)
    variable = (pid % variables).to(tl.int64)
    sample = (pid // variables).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    for reverse in tl.static_range(LAYERS):
        if reverse < LAYERS - 1 or du_ptr is not None:
            _backward_layer(
                grad_scale_ptr, grad_shift_ptr, weight_ptrs[LAYERS - 1 - reverse], scale_ptr, saved_ptr,
                gradient_ptr, du_ptr, samples, variables, variable, sample,
                LAYERS - 1 - reverse, WIDTHS, OFFSETS, HIDDEN, LAYERS, ACTIVATION, SCALE_MAP, BLOCK_N, BLOCK_K,
            )  # fmt: skip


@triton.jit
def _weight_tile(
    grad_scale_ptr,
    grad_shift_ptr,
    u_ptr,
    scale_ptr,
    saved_ptr,
    gradient_ptr,
    dweight_ptr,
    dbias_ptr,
    samples,
    variables,
    variable,
    begin,
    end,
    target,
    tile,
    LAYER: tl.constexpr,
    WIDTHS: tl.constexpr,
    OFFSETS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAYERS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE_MAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    IN: tl.constexpr = WIDTHS[LAYER]
    OUT: tl.constexpr = WIDTHS[LAYER + 1]
    STEP_IN: tl.constexpr = 16 if IN <= 16 else BLOCK_N
    IN_TILES: tl.constexpr = (IN + STEP_IN - 1) // STEP_IN
    output = (tile // IN_TILES).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = (tile % IN_TILES).to(tl.int64) * STEP_IN + tl.arange(0, STEP_IN)
    weight_sum = tl.zeros([BLOCK_N, STEP_IN], grad_scale_ptr.dtype.element_ty)
    bias_sum = tl.zeros([BLOCK_K, BLOCK_N], grad_scale_ptr.dtype.element_ty)
    for start in range(begin, end, BLOCK_K):
        sample = start + tl.arange(0, BLOCK_K).to(tl.int64)
        in_samples = sample < end
        saved_row = (variable * samples + sample) * HIDDEN
        known = in_samples[:, None] & (output < OUT)[None, :]
        if LAYER == LAYERS - 1:
            row = (sample * variables + variable) * (OUT // 2)
            g = _output_gradient(grad_scale_ptr, grad_shift_ptr, scale_ptr, row, output, known, OUT // 2, SCALE_MAP)
        else:
            g = load(gradient_ptr + saved_row[:, None] + OFFSETS[LAYER] + output[None, :], known)
        mask = in_samples[:, None] & (column < IN)[None, :]
        if LAYER == 0:
            h = load(u_ptr + ((sample * variables + variable) * IN)[:, None] + column[None, :], mask)
        else:
            h = load(saved_ptr + saved_row[:, None] + OFFSETS[LAYER - 1] + column[None, :], mask)
            h = activate(h, ACTIVATION)
        weight_sum = _dot(tl.trans(g), h, weight_sum)
        bias_sum += g
    row = target * OUT + output
    mask = (output < OUT)[:, None] & (column < IN)[None, :]
    tl.store(dweight_ptr + row[:, None] * IN + column[None, :], weight_sum, mask=mask)
    # Every tile of these outputs has the same bias sums; the first one writes them.
    first = (output < OUT) & (output * 0 + tile % IN_TILES == 0)
    tl.store(dbias_ptr + row, tl.sum(bias_sum, axis=0), mask=first)


@triton.jit
def _str_tfm_weight_kernel(
    grad_scale_ptr,
    grad_shift_ptr,
    u_ptr,
    scale_ptr,
    saved_ptr,
    gradient_ptr,
    dweight_ptrs,
    dbias_ptrs,
    samples,
    variables,
    chunk,
    splits,
    WIDTHS: tl.constexpr,
    OFFSETS: tl.constexpr,
    TILES: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAYERS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE_MAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # One program: a tile of one layer's weight gradient (tiles TILES[i] to TILES[i + 1] are layer i's), of one
    # variable, summed over one part of the samples.
    pid = tl.program_id(0)
    split = (pid % splits).to(tl.int64)
    variable = (pid // splits % variables).to(tl.int64)
    tile = pid // splits // variables
    begin = split * chunk
    end = tl.minimum(begin + chunk, samples)
    for layer in tl.static_range(LAYERS):
        if (tile >= TILES[layer]) & (tile < TILES[layer + 1]):
            _weight_tile(
                grad_scale_ptr, grad_shift_ptr, u_ptr, scale_ptr, saved_ptr, gradient_ptr,
                dweight_ptrs[layer], dbias_ptrs[layer], samples, variables, variable, begin, end,
                split * variables + variable, tile - TILES[layer],
                layer, WIDTHS, OFFSETS, HIDDEN, LAYERS, ACTIVATION, SCALE_MAP, BLOCK_N, BLOCK_K,
            )  # fmt: skip


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


def _resources(config: StrTfmConfig, u: torch.Tensor) -> dict[str, int | None]:
    # float64 products need more registers than ptxas gives a kernel of its own accord.
    limit = register_limit(config.num_warps) if u.dtype == torch.float64 else None
    return {"num_warps": config.num_warps, "max_registers": limit}


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
            **_resources(config, u),
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
            **_resources(config, u),
        )
    if not mask & 2:
        return du, dweights, dbiases
    tiles = [0]
    for inputs, outputs in zip(widths[:-1], widths[1:]):
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
        **_resources(config, u),
    )
    if splits > 1:
        for partials, sums in ((dweight_targets, dweights), (dbias_targets, dbiases)):
            for partial, total in zip(partials, sums):
                column_sums(partial, total, None, total, splits, total.numel())
    return du, dweights, dbiases
