"""``adain``: instance normalisation with a scale and a shift from elsewhere, per channel or per pixel.

Forward:  d = x - mean over the S pixels of a sample's channel, xhat = rstd d;  y = scale xhat + shift
Backward: dshift = sum_s g;  dscale = sum_s g xhat;  h = scale g;  dx = rstd (h - mean_s h - xhat mean_s(h xhat)).
Kept are x, rstd and the mean relative to each slice's first pixel: the mean itself, rounded, would cost xhat the digits
that an offset |mean| much larger than the deviation takes.
"""

import math

import torch

from .. import reference
from ..reference.modulate import align, compute_dtype
from . import _layout, _validate
from ._registry import OpSpec, Sample, dispatch, mask_of, register
from .modulate import _channels_last, _empty, reduce_pixels


def adain(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, *, eps: float = 1e-5) -> torch.Tensor:
    """Adaptive instance normalisation, ``scale * (x - mean) / sqrt(var + eps) + shift``.

    Mean and biased variance run over the pixels of each sample and channel; the first pixel is subtracted before
    anything is summed, so that a large common offset loses no digits.

    Args:
        x: (N, C, *S) features with 0 to 3 spatial dims, float32, float64, bfloat16 or float16.
        scale: (N, C), or of x's shape.
        shift: (N, C), or of x's shape.
        eps: added to the variance inside the root, finite and >= 0.

    Returns:
        x's shape, dtype and (contiguous or channels-last) memory format; half types are computed in float32. A constant
        channel, and one of a single pixel, is its shift.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: a shape, a device or eps does not fit; the text names the argument, what was expected and what came.

    Reference: Huang and Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", eq. 5
    to 8; section 3.2 of the multi-stage VAE paper, with scale = gamma(z) and shift = beta(z).
    """
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"adain: eps must be finite and >= 0, got {eps}")
    if not _validate.is_plain(x, (scale, shift)):
        _validate.check_features("adain", x)
        _validate.check_affine("adain", "scale", scale, x)
        _validate.check_affine("adain", "shift", shift, x)
        scale, shift = _validate.unify_parameters(x, (scale, shift))
    return dispatch(SPEC, (x, scale, shift), (float(eps),))


class _AdaIN(OpSpec):
    name = "adain"
    # statistics: (2, N, C) in the compute type, the mean relative to the first pixel and 1 / sqrt(var + eps).
    schema = "(Tensor x, Tensor scale, Tensor shift, float eps) -> (Tensor y, Tensor statistics)"
    backward_schema = (
        "(Tensor grad, Tensor x, Tensor statistics, Tensor scale, bool shift_per_pixel, int mask)"
        " -> (Tensor dx, Tensor dscale, Tensor dshift)"
    )
    value_free = frozenset({2})
    # On GPUs Triton alone: it runs group_norm_modulate's Triton kernels on groups of one channel.
    order = {"cpu": ("cpp",), "cuda": ("triton",)}

    def public(self):
        return adain

    def reference(self, tensors, statics):
        return reference.adain(*tensors, eps=statics[0])

    def pack(self, tensors, statics):
        return (*tensors, *statics)

    def unpack(self, raw):
        return tuple(raw[:3]), tuple(raw[3:])

    def backward_call(self, grads, tensors, saved, statics, needs):
        x, scale, shift = tensors
        return (grads[0], x, saved[0], scale, shift.dim() > 2, mask_of(needs)), list

    def fake(self, x, scale, shift, eps):
        statistics = torch.empty((2, *x.shape[:2]), dtype=compute_dtype(x), device=x.device)
        return _layout.empty_as(x), statistics

    def fake_backward(self, grad, x, statistics, scale, shift_per_pixel, mask):
        dx = _layout.empty_as(x) if mask & 1 else _empty(x)
        dscale = self._fake_parameter(x, scale, scale.dim() > 2) if mask & 2 else _empty(scale)
        dshift = self._fake_parameter(x, scale, shift_per_pixel) if mask & 4 else _empty(scale)
        return dx, dscale, dshift

    @staticmethod
    def _fake_parameter(x, like, per_pixel):
        return _layout.empty_as(x).to(like.dtype) if per_pixel else like.new_empty(x.shape[:2])

    def aten(self, x, scale, shift, eps):
        y, statistics = self.fake(x, scale, shift, eps)
        shifted = _shifted(x)
        mean = shifted.mean(dim=2)
        centred = shifted - mean.unsqueeze(2)
        statistics[0] = mean
        statistics[1] = torch.rsqrt((centred * centred).mean(dim=2) + eps)
        y.copy_(reference.adain(x, scale, shift, eps=eps))
        return y, statistics

    def aten_backward(self, grad, x, statistics, scale, shift_per_pixel, mask):
        mean, rstd = statistics.unsqueeze(3).unbind(0)
        g = grad.to(statistics.dtype)
        xhat = ((_shifted(x) - mean) * rstd).reshape(x.shape)
        dx, dscale, dshift = self.fake_backward(grad, x, statistics, scale, shift_per_pixel, mask)
        if mask & 1:
            h = (align(scale, x).to(g.dtype) * g).flatten(2) if x.dim() > 2 else (scale.to(g.dtype) * g).unsqueeze(2)
            hat = xhat.reshape(h.shape)
            gradient = h - h.mean(dim=2, keepdim=True) - hat * (h * hat).mean(dim=2, keepdim=True)
            dx.copy_((rstd * gradient).reshape(x.shape))
        if mask & 2:
            dscale.copy_(reduce_pixels(g * xhat, scale.dim() > 2))
        if mask & 4:
            dshift.copy_(reduce_pixels(g, shift_per_pixel))
        return dx, dscale, dshift

    def triton_kernels(self):
        from ..triton_kernels import adain as kernels

        return kernels.adain_forward, kernels.adain_backward

    def samples(self, device, dtype):
        generator = torch.Generator().manual_seed(5)

        def rand(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        small = ((2, 6, 4, 4), (2, 7, 11), (3, 5), (1, 3, 2, 3, 5), (1, 1, 1, 1), (0, 4, 3, 3))
        for shape in (*small, (2, 33, 17, 4), (1, 2, 61, 53)):
            yield Sample(f"per-channel {shape}", (rand(*shape), rand(*shape[:2]), rand(*shape[:2])), {})
        yield Sample("another eps", (rand(2, 5, 7), rand(2, 5), rand(2, 5)), {"eps": 1e-2})
        x, pixel = rand(2, 6, 4, 5), (2, 6, 4, 5)
        yield Sample("per-pixel", (x, rand(*pixel), rand(*pixel)), {"eps": 1e-6})
        yield Sample("scale per pixel", (x, rand(*pixel), rand(2, 6)), {})
        yield Sample("shift per pixel", (x, rand(2, 6), rand(*pixel)), {})
        yield Sample("channels_last", (_channels_last(x), rand(2, 6), rand(2, 6)), {})
        yield Sample("channels_last, per pixel", (_channels_last(x), rand(*pixel), _channels_last(rand(*pixel))), {})
        yield Sample("channels_last, scale per pixel", (_channels_last(x), rand(*pixel), rand(2, 6)), {})
        yield Sample("channels_last 3-D", (_channels_last(rand(2, 6, 3, 2, 2)), rand(2, 6), rand(2, 6)), {})
        yield Sample("channels_last 1-D", (_channels_last(rand(2, 35, 130)), rand(2, 35), rand(2, 35)), {})
        yield Sample("sliced", (rand(4, 6, 5, 8)[::2, :, 1:, ::3], rand(2, 6), rand(6, 2).t()), {})
        yield Sample("scale from a bank", (rand(3, 4, 6), rand(3, 2, 4)[:, 1], rand(3, 4)), {})
        yield Sample("expanded", (rand(1, 6, 4, 5).expand(3, 6, 4, 5), rand(1, 6).expand(3, 6), rand(3, 6)), {})


def _shifted(x: torch.Tensor) -> torch.Tensor:
    """(N, C, S) in the compute type, each slice less its first pixel."""
    slices = x.to(compute_dtype(x)).reshape(*x.shape[:2], math.prod(x.shape[2:]))
    return slices - slices[:, :, :1]


SPEC = register(_AdaIN())
