"""Forward kernel of str_tfm: the layers one after the other, their results passing through ``saved``."""

import triton
import triton.language as tl

from ._math import activate, dot, load, map_scale


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
        accumulator = dot(a, b, accumulator)
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
