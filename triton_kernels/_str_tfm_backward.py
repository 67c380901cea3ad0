"""Backward kernels of str_tfm: the gradients of the pre-activations, then those of the weights."""

import triton
import triton.language as tl

from ._math import activate, activate_with_slope, dot, load, map_scale_slope


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
            accumulator = dot(a, b, accumulator)
        mask = in_samples[:, None] & in_columns[None, :]
        if LAYER > 0:
            place = saved_row[:, None] + OFFSETS[LAYER - 1] + column[None, :]
            _value, slope = activate_with_slope(load(saved_ptr + place, mask), ACTIVATION)
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
        weight_sum = dot(tl.trans(g), h, weight_sum)
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
