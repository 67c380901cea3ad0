"""``str_tfm``: all per-variable MLPs of the structural decoder and their scale map, in one launch.

Forward:  h_0 = u_d;  h_{l+1} = act(W_l h_l + b_l);  (a, shift) = W_L h_L + b_L;  scale = map(a)
Backward: the chain rule; the forward keeps the hidden pre-activations, d scale / d a follows from scale itself.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch

from .. import reference
from ..reference._activations import ACTIVATIONS, SCALE_MAPS, activate, map_scale
from . import _validate
from ._registry import BACKENDS, OpSpec, Sample, dispatch, register
from .group_norm_modulate import _value_and_slope

_NAME = "str_tfm"


def str_tfm(
    u: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    *,
    activation: str = "mish",
    scale_map: str = "exp",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of every Str-Tfm layer from its own latent variable, one MLP per variable.

    Args:
        u: (N, d, k), the k latent dims of each of d variables.
        weights: one (d, out, in) tensor per layer; the first ``in`` is k, the last ``out`` is 2C.
        biases: one (d, out) tensor per layer.
        activation: between layers: "mish", "silu", "relu", "elu" or "tanh".
        scale_map: logits to scales, every one sends 0 to 1: "exp" (the paper), "exp_half", "softplus_shift",
            "sigmoid2", "one_plus".

    Returns:
        (scale, shift), each (N, d, C), in the promoted dtype of all arguments; half types are computed in float32.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes, devices, activation or scale_map do not fit.

    Reference: Leeb et al., "Structure by Architecture", appendix A.2.1.
    """
    weights, biases = tuple(weights), tuple(biases)
    activation_code = _validate.activation_code(_NAME, activation, identity=False)
    scale_map_code = _validate.scale_map_code(_NAME, scale_map)
    tensors = (u, *weights, *biases)
    plain = _is_plain(u, weights, biases)
    if not plain:
        _check_shapes(u, weights, biases)
    out_dtype = u.dtype
    if not plain and (any(t.dtype is not out_dtype for t in tensors) or out_dtype in (torch.bfloat16, torch.float16)):
        for t in tensors:
            out_dtype = torch.promote_types(out_dtype, t.dtype)
        compute = torch.float64 if out_dtype == torch.float64 else torch.float32
        tensors = tuple(t.to(compute) for t in tensors)
    save = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    scale, shift = dispatch(SPEC, tensors, (activation_code, scale_map_code, save))
    return (scale, shift) if scale.dtype is out_dtype else (scale.to(out_dtype), shift.to(out_dtype))


def _is_plain(u: object, weights: tuple, biases: tuple) -> bool:
    """Whether all shapes fit, with one device and one dtype, float32 or float64: a third of the time that
    :func:`_check_shapes` takes, which finds out what is the matter where this says no.
    """
    if not isinstance(u, torch.Tensor) or u.dim() != 3 or not len(weights) == len(biases) >= 1:
        return False
    (_, variables, width), dtype, device = u.shape, u.dtype, u.device
    if dtype is not torch.float32 and dtype is not torch.float64:
        return False
    for weight, bias in zip(weights, biases):
        if not isinstance(weight, torch.Tensor) or weight.dtype is not dtype or weight.device != device:
            return False
        if not isinstance(bias, torch.Tensor) or bias.dtype is not dtype or bias.device != device:
            return False
        shape = weight.shape
        if len(shape) != 3 or shape[0] != variables or shape[2] != width or bias.shape != shape[:2]:
            return False
        width = shape[1]
    return width % 2 == 0 and width > 0


def _check_shapes(u: torch.Tensor, weights: tuple, biases: tuple) -> None:
    _validate.check_float_tensor(_NAME, "u", u)
    if u.dim() != 3:
        raise ValueError(f"{_NAME}: u must be (N, d, k), got shape {tuple(u.shape)}")
    if not weights or len(weights) != len(biases):
        raise ValueError(
            f"{_NAME}: weights and biases must have the same length >= 1, got {len(weights)} and {len(biases)}"
        )
    width = u.shape[2]
    for layer, (weight, bias) in enumerate(zip(weights, biases)):
        _validate.check_float_tensor(_NAME, f"weights[{layer}]", weight)
        _validate.check_float_tensor(_NAME, f"biases[{layer}]", bias)
        _validate.check_device(_NAME, f"weights[{layer}]", weight, u)
        _validate.check_device(_NAME, f"biases[{layer}]", bias, u)
        if weight.dim() != 3 or weight.shape[0] != u.shape[1] or weight.shape[2] != width:
            raise ValueError(
                f"{_NAME}: weights[{layer}] must be (d, out, in) with d = {u.shape[1]} and in = {width},"
                f" got shape {tuple(weight.shape)}"
            )
        width = weight.shape[1]
        if bias.shape != weight.shape[:2]:
            raise ValueError(
                f"{_NAME}: biases[{layer}] must have shape (d, out) = {tuple(weight.shape[:2])},"
                f" got {tuple(bias.shape)}"
            )
    if width % 2 or width == 0:
        raise ValueError(f"{_NAME}: the last layer must have 2C outputs (scale logits, shift), got {width}")


class _StrTfm(OpSpec):
    name = _NAME
    schema = (
        "(Tensor u, Tensor[] weights, Tensor[] biases, int activation, int scale_map, bool save)"
        " -> (Tensor scale, Tensor shift, Tensor saved)"
    )
    backward_schema = (
        "(Tensor grad_scale, Tensor grad_shift, Tensor u, Tensor[] weights, Tensor[] biases, Tensor scale,"
        " Tensor saved, int activation, int scale_map, int mask) -> (Tensor du, Tensor[] dweights, Tensor[] dbiases)"
    )
    num_outputs = 2
    # The public function upcasts half types: the MLPs are too small for their rounding to pay.
    dtypes = {backend: (torch.float32, torch.float64) for backend in BACKENDS}

    has_limits = True
    # Layers, and features of all layers together: what the GPU kernels unroll and hold on chip.
    limits = {"triton": (8, 1 << 30), "cuda": (16, 4096)}

    def public(self):
        return str_tfm

    def refuses(self, backend, tensors):
        if backend not in self.limits:
            return None
        most_layers, most_features = self.limits[backend]
        u, weights, _ = self._layers(tensors)
        features = u.shape[2] + sum(w.shape[1] for w in weights)
        if len(weights) <= most_layers and features <= most_features:
            return None
        return (
            f"it takes at most {most_layers} layers and {most_features} features in all,"
            f" got {len(weights)} and {features}"
        )

    def of_backward(self, raw):
        _, _, u, weights, biases, *_ = raw
        return (u, *weights, *biases)

    def reference(self, tensors, statics):
        (u, weights, biases), (activation, scale_map, _) = self._layers(tensors), statics
        return reference.str_tfm(
            u, weights, biases, activation=ACTIVATIONS[activation], scale_map=SCALE_MAPS[scale_map]
        )

    @staticmethod
    def _layers(tensors):
        layers = (len(tensors) - 1) // 2
        return tensors[0], list(tensors[1 : 1 + layers]), list(tensors[1 + layers :])

    def pack(self, tensors, statics):
        return (*self._layers(tensors), *statics)

    def unpack(self, raw):
        u, weights, biases, *statics = raw
        return (u, *weights, *biases), tuple(statics)

    def split(self, outputs):
        # scale is an output and an input of the backward: its map's derivative follows from it.
        scale, shift, saved = outputs
        return (scale, shift), (scale, saved)

    def backward_call(self, grads, tensors, saved, statics, needs):
        u, weights, biases = self._layers(tensors)
        activation, scale_map, _ = statics
        mask = int(needs[0]) | int(any(needs[1:])) << 1
        raw = (*(g.contiguous() for g in grads), u, weights, biases, *saved, activation, scale_map, mask)

        def align(found):
            du, dweights, dbiases = found
            return [du, *dweights, *dbiases] if mask & 2 else [du] + [None] * (len(tensors) - 1)

        return raw, align

    def fake(self, u, weights, biases, activation, scale_map, save):
        n, d = u.shape[:2]
        channels = weights[-1].shape[1] // 2
        hidden = sum(w.shape[1] for w in weights[:-1])
        saved = u.new_empty((d, n, hidden)) if save else u.new_empty((0,))
        return u.new_empty((n, d, channels)), u.new_empty((n, d, channels)), saved

    def fake_backward(self, grad_scale, grad_shift, u, weights, biases, scale, saved, activation, scale_map, mask):
        du = u.new_empty(u.shape) if mask & 1 else u.new_empty((0,))
        shapes = [[t.shape if mask & 2 else (0,) for t in group] for group in (weights, biases)]
        return du, *([u.new_empty(shape) for shape in group] for group in shapes)

    def aten(self, u, weights, biases, activation, scale_map, save):
        hidden, kept = u.transpose(0, 1), []
        for layer, (weight, bias) in enumerate(zip(weights, biases)):
            if layer > 0:
                kept.append(hidden)
                hidden = activate(hidden, ACTIVATIONS[activation])
            hidden = torch.baddbmm(bias.unsqueeze(1), hidden, weight.transpose(1, 2))
        logits, shift = hidden.transpose(0, 1).chunk(2, dim=-1)
        empty = u.new_empty((u.shape[1], u.shape[0], 0))
        saved = torch.cat([empty, *kept], dim=2) if save else u.new_empty((0,))
        return map_scale(logits, SCALE_MAPS[scale_map]).contiguous(), shift.contiguous(), saved

    def aten_backward(self, grad_scale, grad_shift, u, weights, biases, scale, saved, activation, scale_map, mask):
        name = ACTIVATIONS[activation]
        dlogits = grad_scale * _map_slope(scale, SCALE_MAPS[scale_map])
        delta = torch.cat([dlogits, grad_shift], dim=-1).transpose(0, 1)
        pre = saved.split([w.shape[1] for w in weights[:-1]], dim=2) if len(weights) > 1 else ()
        dweights, dbiases = [], []
        for layer in reversed(range(len(weights))):
            value, slope = _value_and_slope(pre[layer - 1], name) if layer > 0 else (u.transpose(0, 1), None)
            dweights.insert(0, delta.transpose(1, 2) @ value if mask & 2 else u.new_empty((0,)))
            dbiases.insert(0, delta.sum(dim=1) if mask & 2 else u.new_empty((0,)))
            delta = delta @ weights[layer]
            delta = delta if slope is None else delta * slope
        du = delta.transpose(0, 1).contiguous() if mask & 1 else u.new_empty((0,))
        return du, [w.contiguous() for w in dweights], dbiases

    def triton_kernels(self):
        from ..triton_kernels import str_tfm as kernels

        return kernels.str_tfm_forward, kernels.str_tfm_backward

    def samples(self, device, dtype):
        generator = torch.Generator().manual_seed(2)

        def rand(*shape, factor=1.0):
            return (factor * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

        def call(n, d, widths):
            pairs = list(pairwise(widths))
            weights = [rand(d, o, i, factor=i**-0.5) for i, o in pairs]
            return rand(n, d, widths[0]), weights, [rand(d, o, factor=0.1) for _, o in pairs]

        shapes = ((5, 3, (1, 8, 8, 6)), (33, 2, (2, 7, 5, 3, 10)), (1, 1, (1, 2)), (4, 2, (3, 4)), (0, 2, (1, 4, 2)))
        for n, d, widths in shapes:
            yield Sample(f"N={n} d={d} {widths}", call(n, d, widths), {})
        for activation in ACTIVATIONS[1:]:
            yield Sample(activation, call(6, 2, (1, 8, 4)), {"activation": activation})
        for scale_map in SCALE_MAPS:
            yield Sample(scale_map, call(6, 2, (1, 8, 4)), {"scale_map": scale_map})
        _, weights, biases = call(6, 4, (2, 8, 8, 4))
        yield Sample("strided", (rand(2, 4, 6).permute(2, 1, 0), [w.mT.contiguous().mT for w in weights], biases), {})
        yield Sample("expanded", (rand(6, 1, 2).expand(6, 4, 2), weights, biases), {})


def _map_slope(scale: torch.Tensor, name: str) -> torch.Tensor:
    """d scale / d logit in terms of the scale."""
    if name == "exp":
        return scale
    if name == "exp_half":
        return 0.5 * scale
    if name == "softplus_shift":
        # scale = log(1 + e^t), so sigmoid(t) = 1 - e^-scale.
        return -torch.expm1(-scale)
    if name == "sigmoid2":
        return scale * (1.0 - 0.5 * scale)
    return torch.ones_like(scale)


SPEC = register(_StrTfm())
