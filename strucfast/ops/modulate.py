"""``modulate``: channelwise or pixelwise affine, ``y = scale * x + shift``.

Backward: ``dx = scale g``, ``dscale = sum_s g x``, ``dshift = sum_s g`` (no sum where the parameter is per pixel).
"""

import torch

from .. import reference
from ..reference.modulate import align, compute_dtype
from . import _layout, _validate
from ._registry import OpSpec, Sample, current_backend, dispatch, mask_of, register


def modulate(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Scale and shift features per channel or per pixel, as the Str-Tfm and FiLM layers do.

    Args:
        x: (N, C, *S) features with 0 to 3 spatial dims, float32, float64, bfloat16 or float16.
        scale: (N, C), or of x's shape.
        shift: (N, C), or of x's shape.

    Returns:
        ``scale * x + shift`` in x's shape, dtype and (contiguous or channels-last) memory format; half types are
        computed in float32.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: a shape or a device does not fit; the text names the argument, what was expected and what came.

    Reference: Leeb et al., "Structure by Architecture", appendix A.2.1 (the Str-Tfm's pixelwise affine).
    """
    if not _validate.is_plain(x, (scale, shift)):
        _validate.check_features("modulate", x)
        _validate.check_affine("modulate", "scale", scale, x)
        _validate.check_affine("modulate", "shift", shift, x)
        scale, shift = _validate.unify_parameters(x, (scale, shift))
    if x.dim() == 2 and current_backend() == "auto" and _is_one_pass(x, scale, shift):
        if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad or shift.requires_grad):
            # The backward of addcmul makes a temporary for each of two gradients (0.55x at (16384,64)).
            return x * scale + shift
        return torch.addcmul(shift, x, scale)
    return dispatch(SPEC, (x, scale, shift), ())


def _is_one_pass(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> bool:
    """One number per sample and channel: ATen's own pass reads and writes no more, and its backward needs no Python."""
    dtype = x.dtype
    return (
        x.is_cpu
        and dtype is compute_dtype(x)
        and scale.dtype is dtype
        and shift.dtype is dtype
        # The result lies as x does only if the others have their channels innermost too.
        and x.is_contiguous()
        and scale.stride(1) == 1
        and shift.stride(1) == 1
    )


def _empty(like: torch.Tensor) -> torch.Tensor:
    return like.new_empty((0,))


def reduce_pixels(gradient: torch.Tensor, per_pixel: bool) -> torch.Tensor:
    """Sum over the pixels where the parameter is per channel."""
    if per_pixel or gradient.dim() == 2:
        return gradient
    return gradient.sum(dim=tuple(range(2, gradient.dim())))


class _Modulate(OpSpec):
    name = "modulate"
    schema = "(Tensor x, Tensor scale, Tensor shift) -> Tensor"
    backward_schema = (
        "(Tensor grad, Tensor x, Tensor scale, bool shift_per_pixel, int mask)"
        " -> (Tensor dx, Tensor dscale, Tensor dshift)"
    )
    value_free = frozenset({2})

    def public(self):
        return modulate

    def reference(self, tensors, statics):
        return reference.modulate(*tensors)

    def pack(self, tensors, statics):
        return tuple(tensors)

    def unpack(self, raw):
        return tuple(raw), ()

    def backward_call(self, grads, tensors, saved, statics, needs):
        x, scale, shift = tensors
        return (grads[0], x, scale, shift.dim() > 2, mask_of(needs)), list

    def fake(self, x, scale, shift):
        return _layout.empty_as(x)

    def fake_backward(self, grad, x, scale, shift_per_pixel, mask):
        dx = _layout.empty_as(x) if mask & 1 else _empty(x)
        dscale = self._fake_parameter(x, scale, scale.dim() > 2) if mask & 2 else _empty(scale)
        dshift = self._fake_parameter(x, scale, shift_per_pixel) if mask & 4 else _empty(scale)
        return dx, dscale, dshift

    @staticmethod
    def _fake_parameter(x, like, per_pixel):
        return _layout.empty_as(x).to(like.dtype) if per_pixel else like.new_empty(x.shape[:2])

    def aten(self, x, scale, shift):
        return _layout.empty_as(x).copy_(reference.modulate(x, scale, shift))

    def aten_backward(self, grad, x, scale, shift_per_pixel, mask):
        dtype = compute_dtype(x)
        g = grad.to(dtype)
        dx, dscale, dshift = self.fake_backward(grad, x, scale, shift_per_pixel, mask)
        if mask & 1:
            dx.copy_(align(scale, x).to(dtype) * g)
        if mask & 2:
            dscale.copy_(reduce_pixels(g * x.to(dtype), scale.dim() > 2))
        if mask & 4:
            dshift.copy_(reduce_pixels(g, shift_per_pixel))
        return dx, dscale, dshift

    def triton_kernels(self):
        from ..triton_kernels import modulate as kernels

        return kernels.modulate_forward, kernels.modulate_backward

    def samples(self, device, dtype):
        generator = torch.Generator().manual_seed(0)

        def rand(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        for shape in ((2, 7, 11), (3, 5), (2, 8, 5, 3), (1, 3, 2, 3, 5), (1, 1, 1, 1), (0, 4, 3, 3), (2, 33, 17, 4)):
            yield Sample(f"per-channel {shape}", (rand(*shape), rand(*shape[:2]), rand(*shape[:2])), {})
        x, pixel = rand(2, 6, 4, 5), (2, 6, 4, 5)
        yield Sample("per-pixel", (x, rand(*pixel), rand(*pixel)), {})
        yield Sample("scale per pixel", (x, rand(*pixel), rand(2, 6)), {})
        yield Sample("shift per pixel", (x, rand(2, 6), rand(*pixel)), {})
        yield Sample("channels_last", (_channels_last(x), rand(2, 6), rand(2, 6)), {})
        yield Sample("channels_last, per pixel", (_channels_last(x), rand(*pixel), _channels_last(rand(*pixel))), {})
        yield Sample("channels_last 3-D", (_channels_last(rand(2, 6, 3, 2, 2)), rand(2, 6), rand(2, 6)), {})
        yield Sample("sliced", (rand(4, 6, 5, 8)[::2, :, 1:, ::3], rand(2, 6), rand(6, 2).t()), {})
        yield Sample(
            "expanded", (rand(1, 6, 4, 5).expand(3, 6, 4, 5), rand(1, 6).expand(3, 6), rand(3, 1).expand(3, 6)), {}
        )


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


SPEC = register(_Modulate())
