"""``group_norm_modulate``: GroupNorm, activation and affine in one kernel, the conv block's epilogue.

Forward:  xhat = (x - m_g) rstd_g;  u = weight_c xhat + bias_c;  y = scale act(u) + shift
Backward: dshift = sum_s g;  dscale = sum_s g act(u);  du = scale g act'(u);  dbias = sum du;  dweight = sum du xhat;
          h = weight du;  dx = rstd (h - mean_g h - xhat mean_g(h xhat)).  Only x, mean and rstd are kept.
"""

import math

import torch

from .. import reference
from ..reference._activations import ACTIVATIONS, activate
from ..reference.modulate import align, compute_dtype
from . import _layout, _validate
from ._registry import OpSpec, Sample, dispatch, mask_of, register
from .modulate import _channels_last, reduce_pixels


def group_norm_modulate(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    *,
    activation: str = "mish",
    eps: float = 1e-5,
) -> torch.Tensor:
    """``scale * act(weight * xhat + bias) + shift``, ``xhat`` being x normalised within ``num_groups`` channel groups.

    Args:
        x: (N, C, *S) features with 0 to 3 spatial dims, float32, float64, bfloat16 or float16.
        num_groups: divides C; statistics run over (C / num_groups) * S values, biased variance.
        weight, bias: (C,) or None, the GroupNorm's own affine.
        scale, shift: (N, C), of x's shape, or None, the modulation behind the activation (the next Str-Tfm's).
        activation: "mish", "silu", "relu", "elu", "tanh" or "identity".
        eps: added to the variance inside the root, >= 0.

    Returns:
        x's shape, dtype and (contiguous or channels-last) memory format; statistics in float32 (float64 for float64).

    Raises:
        TypeError: an argument is no floating-point tensor, or num_groups is no int.
        ValueError: a shape, a device, num_groups, activation or eps does not fit.

    Reference: Leeb et al., "Structure by Architecture", appendix A.2.1; Wu and He, "Group Normalization", eq. 1 to 7.
    """
    code = _validate.activation_code("group_norm_modulate", activation)
    plain = _validate.is_plain(x, (scale, shift), (weight, bias))
    if not plain:
        _validate.check_features("group_norm_modulate", x)
    _check_groups(x, num_groups, eps)
    if not plain:
        for argument, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                _validate.check_per_channel("group_norm_modulate", argument, value, x)
        for argument, value in (("scale", scale), ("shift", shift)):
            if value is not None:
                _validate.check_affine("group_norm_modulate", argument, value, x)
        weight, bias, scale, shift = _validate.unify_parameters(x, (weight, bias, scale, shift))
    return dispatch(SPEC, (x, weight, bias, scale, shift), (int(num_groups), code, float(eps)))


def _check_groups(x: torch.Tensor, num_groups: int, eps: float) -> None:
    if not _validate.is_int(num_groups):
        raise TypeError(f"group_norm_modulate: num_groups must be an int, got {type(num_groups).__name__}")
    if num_groups < 1 or x.shape[1] % num_groups != 0:
        raise ValueError(
            f"group_norm_modulate: num_groups must be positive and divide the {x.shape[1]} channels of x,"
            f" got {num_groups}"
        )
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"group_norm_modulate: eps must be finite and >= 0, got {eps}")


class _GroupNormModulate(OpSpec):
    name = "group_norm_modulate"
    schema = (
        "(Tensor x, int num_groups, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, int activation,"
        " float eps) -> (Tensor y, Tensor mean, Tensor rstd)"
    )
    backward_schema = (
        "(Tensor grad, Tensor x, Tensor mean, Tensor rstd, int num_groups, Tensor? weight, Tensor? bias, Tensor? scale,"
        " Tensor? shift, int activation, int mask)"
        " -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dscale, Tensor dshift)"
    )
    value_free = frozenset({4})

    def public(self):
        return group_norm_modulate

    def reference(self, tensors, statics):
        x, *parameters = tensors
        num_groups, code, eps = statics
        return reference.group_norm_modulate(x, num_groups, *parameters, activation=ACTIVATIONS[code], eps=eps)

    def pack(self, tensors, statics):
        x, *parameters = tensors
        num_groups, code, eps = statics
        return (x, num_groups, *parameters, code, eps)

    def unpack(self, raw):
        x, num_groups, weight, bias, scale, shift, code, eps = raw
        return (x, weight, bias, scale, shift), (num_groups, code, eps)

    def backward_call(self, grads, tensors, saved, statics, needs):
        x, *parameters = tensors
        num_groups, code, _ = statics
        return (grads[0], x, *saved, num_groups, *parameters, code, mask_of(needs)), list

    def fake(self, x, num_groups, weight, bias, scale, shift, activation, eps):
        statistics = torch.empty((x.shape[0], num_groups), dtype=compute_dtype(x), device=x.device)
        return _layout.empty_as(x), statistics, torch.empty_like(statistics)

    def fake_backward(self, grad, x, mean, rstd, num_groups, weight, bias, scale, shift, activation, mask):
        outputs = [_layout.empty_as(x) if mask & 1 else x.new_empty((0,))]
        for i, parameter in enumerate((weight, bias, scale, shift), start=1):
            if not mask >> i & 1 or parameter is None:
                outputs.append(x.new_empty((0,)))
            elif parameter.dim() > 2:
                outputs.append(_layout.empty_as(x).to(parameter.dtype))
            else:
                outputs.append(parameter.new_empty(parameter.shape))
        return tuple(outputs)

    def aten(self, x, num_groups, weight, bias, scale, shift, activation, eps):
        y, mean, rstd = self.fake(x, num_groups, weight, bias, scale, shift, activation, eps)
        grouped = x.to(mean.dtype).reshape(x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups)
        mean.copy_(grouped.mean(dim=2))
        centred = grouped - mean.unsqueeze(2)
        rstd.copy_(torch.rsqrt((centred * centred).mean(dim=2) + eps))
        parameters = (weight, bias, scale, shift)
        y.copy_(reference.group_norm_modulate(x, num_groups, *parameters, activation=ACTIVATIONS[activation], eps=eps))
        return y, mean, rstd

    def aten_backward(self, grad, x, mean, rstd, num_groups, weight, bias, scale, shift, activation, mask):
        dtype = compute_dtype(x)
        channels = (1, x.shape[1]) + (1,) * (x.dim() - 2)
        grouped = (x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups)
        g = grad.to(dtype)
        xhat = ((x.to(dtype).reshape(grouped) - mean.unsqueeze(2)) * rstd.unsqueeze(2)).reshape(x.shape)
        w = torch.ones(channels, dtype=dtype, device=x.device) if weight is None else weight.to(dtype).reshape(channels)
        u = xhat * w + (0.0 if bias is None else bias.to(dtype).reshape(channels))
        value, slope = _value_and_slope(u, ACTIVATIONS[activation])
        du = g * slope if scale is None else align(scale, x).to(dtype) * g * slope
        outputs = self.fake_backward(grad, x, mean, rstd, num_groups, weight, bias, scale, shift, activation, mask)
        over_batch = (0, *range(2, x.dim()))
        if mask & 1:
            h = (w * du).reshape(grouped)
            hx = xhat.reshape(grouped)
            dx = h - h.mean(dim=2, keepdim=True) - hx * (h * hx).mean(dim=2, keepdim=True)
            outputs[0].copy_((dx * rstd.unsqueeze(2)).reshape(x.shape))
        for i, gradient in enumerate((du * xhat, du, g * value, g), start=1):
            parameter = (weight, bias, scale, shift)[i - 1]
            if mask >> i & 1 and parameter is not None:
                summed = gradient.sum(dim=over_batch) if i <= 2 else reduce_pixels(gradient, parameter.dim() > 2)
                outputs[i].copy_(summed)
        return outputs

    def triton_kernels(self):
        from ..triton_kernels import group_norm_modulate as kernels

        return kernels.group_norm_modulate_forward, kernels.group_norm_modulate_backward

    def samples(self, device, dtype):
        generator = torch.Generator().manual_seed(1)

        def rand(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        def full(shape, groups, **kwargs):
            n, c = shape[:2]
            return (rand(*shape), groups, rand(c), rand(c), rand(n, c), rand(n, c)), kwargs

        cases = (((3, 6), 2), ((2, 6, 7), 3), ((2, 8, 5, 3), 4), ((2, 4, 2, 3, 2), 2), ((1, 2, 1, 1), 1))
        for shape, groups in (*cases, ((2, 33, 3, 5), 11), ((0, 4, 3, 3), 2), ((2, 5, 4, 4), 5)):
            yield Sample(f"{shape}, {groups} groups", *full(shape, groups))
        for activation in ACTIVATIONS:
            yield Sample(activation, *full((2, 8, 4, 3), 2, activation=activation))
        x = rand(2, 8, 5, 3)
        yield Sample("plain", (x, 4), {"activation": "identity", "eps": 1e-3})
        yield Sample("weight only", (x, 4, rand(8)), {})
        yield Sample("scale only", (x, 4), {"scale": rand(2, 8)})
        yield Sample("shift per pixel", (x, 4), {"bias": rand(8), "shift": rand(2, 8, 5, 3)})
        pixel = (_channels_last(rand(2, 8, 5, 3)), rand(2, 8, 5, 3))
        yield Sample("per pixel", (x, 4, rand(8), rand(8), *pixel), {})
        for shape in ((2, 8, 5, 3), (2, 6, 3, 2, 2), (3, 4, 7)):
            args, _ = full(shape, 2)
            yield Sample(f"channels_last {shape}", (_channels_last(args[0]), *args[1:]), {})
        yield Sample("channels_last, per pixel", (_channels_last(x), 4, rand(8), rand(8), *pixel), {})
        yield Sample("sliced", (rand(4, 8, 5, 9)[::2, :, 1:, ::2], 4, rand(16)[::2], None, rand(8, 2).t()), {})


def _value_and_slope(u: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The activation and its derivative in closed form."""
    if name == "identity":
        return u, torch.ones_like(u)
    if name == "relu":
        return u.clamp_min(0.0), (u > 0).to(u.dtype)
    if name == "tanh":
        value = torch.tanh(u)
        return value, 1.0 - value * value
    if name == "elu":
        value = activate(u, "elu")
        return value, torch.where(u > 0, torch.ones_like(u), torch.exp(u.clamp_max(0.0)))
    if name == "silu":
        s = torch.sigmoid(u)
        return u * s, s * (1.0 + u * (1.0 - s))
    e = torch.exp(u.clamp_max(20.0))
    n = e * (e + 2.0)
    return u * n / (n + 2.0), n / (n + 2.0) + 4.0 * u * e * (1.0 + e) / (n + 2.0) ** 2


SPEC = register(_GroupNormModulate())
