"""``mmd``, ``mmd_dimwise`` and ``hsic``: kernel statistics over all pairs of points, without a matrix of them.

MMD:  E = sum_ij w_ij k(z_i, z_j) over the union z of both samples;  dE/dz_i = sum_j 2 w_ij f_ij (z_i - z_j)
HSIC: E = c sum_ij k_ij (l_ij - v_i - v_j);  dE/dk_ij = c (l_ij - v_i - v_j), and the same with the roles swapped
with dk/da = f (a - b):  rbf  k = exp(-|a-b|^2 / 2 b^2), f = -k / b^2;  imq  k = b / (b + |a-b|^2), f = -2 k^2 / b.
The forward of MMD keeps its gradient, which its one scalar per statistic only scales; that of HSIC keeps v and u, the
centring of either matrix.
"""

import math
import numbers
from collections.abc import Sequence

import torch

from .. import reference
from ..reference.modulate import compute_dtype
from ..reference.pairwise import KERNELS
from . import _validate
from ._registry import BACKENDS, OpSpec, Sample, Tolerance, dispatch, register

_DIMWISE_BANDWIDTHS = (0.2, 0.4, 1.0, 2.0, 4.0, 10.0)


def mmd(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    kernel: str = "rbf",
    bandwidth: float | Sequence[float] = 1.0,
    unbiased: bool = True,
) -> torch.Tensor:
    """Squared maximum mean discrepancy between two samples, in O((N + M) D) memory.

    Args:
        x: (N, D) points, float32, float64, bfloat16 or float16.
        y: (M, D) points.
        kernel: "rbf", ``exp(-|a-b|^2 / 2 b^2)`` with b in units of x, or "imq", ``b / (b + |a-b|^2)`` with b in units
            of x squared.
        bandwidth: b > 0, or several, whose kernels are summed.
        unbiased: leave a point's pair with itself out (the U-statistic, which may be negative; N, M >= 2); else the
            V-statistic, which is >= 0.

    Returns:
        A scalar in x's dtype; float32 for half types.

    Raises:
        TypeError: x or y is no floating-point tensor, or bandwidth no number or sequence of numbers.
        ValueError: a shape, a device, kernel or bandwidth does not fit, or there are too few points.

    Reference: survey of Tschannen et al., "Recent Advances in Autoencoder-Based Representation Learning", eq. 20;
    Gretton et al., "A Kernel Two-Sample Test", eq. 3 and 5.
    """
    return _mmd("mmd", x, y, kernel, bandwidth, unbiased)


def mmd_dimwise(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    kernel: str = "imq",
    bandwidth: float | Sequence[float] = _DIMWISE_BANDWIDTHS,
    unbiased: bool = True,
) -> torch.Tensor:
    """:func:`mmd` of every coordinate by itself: the divergence between the marginals of two samples.

    Args:
        x: (N, D) points, float32, float64, bfloat16 or float16.
        y: (M, D) points.
        kernel, bandwidth, unbiased: as in :func:`mmd`; the defaults are those of the paper's code, imq with b = 2 s
            for the scales s = 0.1, 0.2, 0.5, 1, 2, 5.

    Returns:
        (D,), one squared discrepancy per coordinate, in x's dtype (float32 for half types); the paper takes the sum.

    Raises:
        TypeError: x or y is no floating-point tensor, or bandwidth no number or sequence of numbers.
        ValueError: a shape, a device, kernel or bandwidth does not fit, or there are too few points.

    Reference: Mathieu et al., "Disentangling Disentanglement in Variational Autoencoders", section 4 and its code.
    """
    return _mmd("mmd_dimwise", x, y, kernel, bandwidth, unbiased)


def hsic(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    kernel: str = "rbf",
    bandwidth_x: float | Sequence[float] = 1.0,
    bandwidth_y: float | Sequence[float] = 1.0,
    unbiased: bool = False,
) -> torch.Tensor:
    """Hilbert-Schmidt independence criterion between paired samples, in O(N D) memory.

    Args:
        x: (N, D) points, float32, float64, bfloat16 or float16.
        y: (N, E) points, row i paired with x's row i.
        kernel: of both, "rbf" or "imq" as in :func:`mmd`.
        bandwidth_x, bandwidth_y: of either kernel, > 0; the kernels of several are summed.
        unbiased: the estimator of Song et al. (N >= 4; may be negative), which is 0 on average for independent
            samples; else the V-statistic ``tr(K H L H) / N^2``, which is >= 0 and of order 1/N there.

    Returns:
        A scalar in x's dtype; float32 for half types.

    Raises:
        TypeError: x or y is no floating-point tensor, or a bandwidth no number or sequence of numbers.
        ValueError: a shape, a device, kernel or bandwidth does not fit, or there are too few points.

    Reference: survey of Tschannen et al., "Recent Advances in Autoencoder-Based Representation Learning", eq. 21;
    Song et al., "Feature Selection via Dependence Maximization" (2012), eq. 5.
    """
    code = _kernel_code("hsic", kernel)
    bandwidths_x = _bandwidths("hsic", "bandwidth_x", bandwidth_x)
    bandwidths_y = _bandwidths("hsic", "bandwidth_y", bandwidth_y)
    _check_points("hsic", x, y, 4 if unbiased else 1)
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"hsic: x and y must have the same number of points, got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return dispatch(HSIC, _unify(x, y), (code, bandwidths_x, bandwidths_y, bool(unbiased)))


def _mmd(name, x, y, kernel, bandwidth, unbiased):
    code = _kernel_code(name, kernel)
    bandwidths = _bandwidths(name, "bandwidth", bandwidth)
    _check_points(name, x, y, 2 if unbiased else 1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{name}: x and y must have the same number of dims, got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = _unify(x, y)
    save = (int(x.requires_grad) | int(y.requires_grad) << 1) if torch.is_grad_enabled() else 0
    return dispatch(MMD if name == "mmd" else MMD_DIMWISE, (x, y), (code, bandwidths, bool(unbiased), save))


def _kernel_code(function: str, kernel: str) -> int:
    if kernel not in KERNELS:
        raise ValueError(f"{function}: kernel must be one of {KERNELS}, got {kernel!r}")
    return KERNELS.index(kernel)


def _bandwidths(function: str, argument: str, value: float | Sequence[float]) -> tuple[float, ...]:
    values = (value,) if isinstance(value, numbers.Real) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(b, numbers.Real) for b in values):
        raise TypeError(f"{function}: {argument} must be a number or a sequence of numbers, got {value!r}")
    found = tuple(float(b) for b in values)
    if not found or not all(0.0 < b < math.inf for b in found):
        raise ValueError(f"{function}: {argument} must be positive and finite, one or several, got {value!r}")
    return found


def _check_points(function: str, x: torch.Tensor, y: torch.Tensor, least: int) -> None:
    for argument, value in (("x", x), ("y", y)):
        _validate.check_float_tensor(function, argument, value)
        if value.dim() != 2 or value.shape[1] < 1:
            raise ValueError(f"{function}: {argument} must be (N, D) with D >= 1, got shape {tuple(value.shape)}")
        if value.shape[0] < least:
            raise ValueError(f"{function}: {argument} must have at least {least} points, got {value.shape[0]}")
    _validate.check_device(function, "y", y, x)


def _unify(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in x's compute type: the points are few, their pairs are many."""
    dtype = compute_dtype(x)
    if x.dtype is dtype and y.dtype is dtype:
        return x, y
    return x.to(dtype), y.to(dtype)


def _kernel_and_factor(
    square: torch.Tensor, kernel: int, bandwidths: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """``k`` of squared distances, and ``f`` of ``dk/da = f (a - b)``, summed over the bandwidths."""
    total, factor = torch.zeros_like(square), torch.zeros_like(square)
    for b in bandwidths:
        k = torch.exp(square * (-0.5 / (b * b))) if KERNELS[kernel] == "rbf" else b / (b + square)
        total += k
        factor -= k / (b * b) if KERNELS[kernel] == "rbf" else 2 / b * k * k
    return total, factor


class _Mmd(OpSpec):
    schema = (
        "(Tensor x, Tensor y, int kernel, float[] bandwidth, bool unbiased, int save)"
        " -> (Tensor value, Tensor slope_x, Tensor slope_y)"
    )
    backward_schema = "(Tensor grad, Tensor slope_x, Tensor slope_y, int mask) -> (Tensor dx, Tensor dy)"
    # The public function upcasts half types: N points cost little beside N^2 pairs.
    dtypes = {backend: (torch.float32, torch.float64) for backend in BACKENDS}
    order = {"cpu": ("cpp",), "cuda": ("triton",)}

    def __init__(self, name: str, dimwise: bool) -> None:
        self.name, self.dimwise = name, dimwise
        # Differences of means of kernels, which lie between 0 and the number of bandwidths.
        self.tolerance = Tolerance(floor=2.0 if dimwise else 0.25)

    def public(self):
        return mmd_dimwise if self.dimwise else mmd

    def reference(self, tensors, statics):
        kernel, bandwidth, unbiased, _ = statics
        function = reference.mmd_dimwise if self.dimwise else reference.mmd
        return function(*tensors, kernel=KERNELS[kernel], bandwidth=bandwidth, unbiased=unbiased)

    def pack(self, tensors, statics):
        return (*tensors, *statics)

    def unpack(self, raw):
        x, y, *statics = raw
        return (x, y), tuple(statics)

    def backward_call(self, grads, tensors, saved, statics, needs):
        return (grads[0], *saved, int(needs[0]) | int(needs[1]) << 1), list

    def fake(self, x, y, kernel, bandwidth, unbiased, save):
        slopes = [t.new_empty(t.shape if save >> i & 1 else (0,)) for i, t in enumerate((x, y))]
        return x.new_empty((x.shape[1],) if self.dimwise else ()), *slopes

    def fake_backward(self, grad, slope_x, slope_y, mask):
        return tuple(s.new_empty(s.shape if mask >> i & 1 else (0,)) for i, s in enumerate((slope_x, slope_y)))

    def aten(self, x, y, kernel, bandwidth, unbiased, save):
        n, m = x.shape[0], y.shape[0]
        z = torch.cat([x, y])
        # (statistics, points, dims of each)
        z = z.t().unsqueeze(2) if self.dimwise else z.unsqueeze(0)
        difference = z.unsqueeze(2) - z.unsqueeze(1)
        k, factor = _kernel_and_factor(difference.square().sum(dim=3), kernel, bandwidth)
        weights = x.new_full((n + m, n + m), -1.0 / (n * m))
        weights[:n, :n] = 1.0 / (n * (n - 1) if unbiased else n * n)
        weights[n:, n:] = 1.0 / (m * (m - 1) if unbiased else m * m)
        if unbiased:
            weights.fill_diagonal_(0.0)
        value = (weights * k).sum(dim=(1, 2))
        slope = 2 * ((weights * factor).unsqueeze(3) * difference).sum(dim=2)
        slope = slope.squeeze(2).t() if self.dimwise else slope.squeeze(0)
        outputs = self.fake(x, y, kernel, bandwidth, unbiased, save)
        outputs[0].copy_(value if self.dimwise else value.squeeze(0))
        for i, part in enumerate(slope.split([n, m])):
            if save >> i & 1:
                outputs[1 + i].copy_(part)
        return outputs

    def aten_backward(self, grad, slope_x, slope_y, mask):
        found = self.fake_backward(grad, slope_x, slope_y, mask)
        for i, slope in enumerate((slope_x, slope_y)):
            if mask >> i & 1:
                found[i].copy_(grad * slope)
        return found

    def triton_kernels(self):
        from ..triton_kernels import pairwise as kernels

        return (kernels.mmd_dimwise_forward if self.dimwise else kernels.mmd_forward), kernels.mmd_backward

    def samples(self, device, dtype):
        rand = _random(device, dtype)
        for n, m, d in ((5, 4, 3), (7, 7, 1), (2, 3, 5), (67, 130, 7)):
            yield Sample(f"N={n} M={m} D={d}", (rand(n, d), rand(m, d) + 0.5), {})
        x, y = rand(9, 4), rand(6, 4) - 0.25
        for kernel in KERNELS:
            for unbiased in (True, False):
                options = {"kernel": kernel, "bandwidth": 1.5, "unbiased": unbiased}
                yield Sample(f"{kernel} unbiased={unbiased}", (x, y), options)
            yield Sample(f"{kernel}, bandwidths", (x, y), {"kernel": kernel, "bandwidth": (0.5, 1.0, 4.0)})
        yield Sample("one point each", (rand(1, 3), rand(1, 3)), {"unbiased": False})
        yield Sample("strided", (rand(4, 9).t()[::2], rand(6, 8)[:, ::2]), {"bandwidth": 2.0})
        yield Sample("expanded", (rand(1, 4).expand(5, 4), rand(4, 1).expand(4, 4)), {"bandwidth": 2.0})


class _Hsic(OpSpec):
    name = "hsic"
    schema = (
        "(Tensor x, Tensor y, int kernel, float[] bandwidth_x, float[] bandwidth_y, bool unbiased)"
        " -> (Tensor value, Tensor centre_x, Tensor centre_y)"
    )
    backward_schema = (
        "(Tensor grad, Tensor x, Tensor y, Tensor centre_x, Tensor centre_y, int kernel, float[] bandwidth_x,"
        " float[] bandwidth_y, bool unbiased, int mask) -> (Tensor dx, Tensor dy)"
    )
    dtypes = {backend: (torch.float32, torch.float64) for backend in BACKENDS}
    order = {"cpu": ("cpp",), "cuda": ("triton",)}
    # Differences of means of kernels, which lie between 0 and the number of bandwidths.
    tolerance = Tolerance(floor=0.25)

    def public(self):
        return hsic

    def reference(self, tensors, statics):
        kernel, bandwidth_x, bandwidth_y, unbiased = statics
        options = {"bandwidth_x": bandwidth_x, "bandwidth_y": bandwidth_y, "unbiased": unbiased}
        return reference.hsic(*tensors, kernel=KERNELS[kernel], **options)

    def pack(self, tensors, statics):
        return (*tensors, *statics)

    def unpack(self, raw):
        x, y, *statics = raw
        return (x, y), tuple(statics)

    def backward_call(self, grads, tensors, saved, statics, needs):
        return (grads[0], *tensors, *saved, *statics, int(needs[0]) | int(needs[1]) << 1), list

    def fake(self, x, y, kernel, bandwidth_x, bandwidth_y, unbiased):
        return x.new_empty(()), x.new_empty(x.shape[:1]), x.new_empty(x.shape[:1])

    def fake_backward(self, grad, x, y, centre_x, centre_y, kernel, bandwidth_x, bandwidth_y, unbiased, mask):
        return tuple(t.new_empty(t.shape if mask >> i & 1 else (0,)) for i, t in enumerate((x, y)))

    @staticmethod
    def _grams(tensors, kernel, bandwidths, unbiased):
        """Per tensor (k, f, differences); without the diagonal of k when unbiased."""
        for t, b in zip(tensors, bandwidths):
            difference = t.unsqueeze(1) - t.unsqueeze(0)
            k, factor = _kernel_and_factor(difference.square().sum(dim=2), kernel, b)
            yield (k.fill_diagonal_(0.0) if unbiased else k), factor, difference

    @staticmethod
    def _constant(n: int, unbiased: bool) -> float:
        return 1.0 / (n * (n - 3) if unbiased else n * n)

    def aten(self, x, y, kernel, bandwidth_x, bandwidth_y, unbiased):
        n = x.shape[0]
        (k, _, _), (m, _, _) = self._grams((x, y), kernel, (bandwidth_x, bandwidth_y), unbiased)
        centres = []
        for gram in (k, m):
            rows, total = gram.sum(dim=1), gram.sum()
            divisors = (n - 2, 2 * (n - 1) * (n - 2)) if unbiased else (n, 2 * n * n)
            centres.append(rows / divisors[0] - total / divisors[1])
        centred = m - centres[1].unsqueeze(0) - centres[1].unsqueeze(1)
        return (k * centred).sum() * self._constant(n, unbiased), *centres

    def aten_backward(self, grad, x, y, centre_x, centre_y, kernel, bandwidth_x, bandwidth_y, unbiased, mask):
        found = self.fake_backward(
            grad, x, y, centre_x, centre_y, kernel, bandwidth_x, bandwidth_y, unbiased, mask
        )
        grams = list(self._grams((x, y), kernel, (bandwidth_x, bandwidth_y), unbiased))
        centres = (centre_x, centre_y)
        for i, (_, factor, difference) in enumerate(grams):
            if mask >> i & 1:
                centre = centres[1 - i]
                weights = factor * (grams[1 - i][0] - centre.unsqueeze(0) - centre.unsqueeze(1))
                slope = (weights.unsqueeze(2) * difference).sum(dim=1)
                found[i].copy_(2 * self._constant(x.shape[0], unbiased) * grad * slope)
        return found

    def triton_kernels(self):
        from ..triton_kernels import pairwise as kernels

        return kernels.hsic_forward, kernels.hsic_backward

    def samples(self, device, dtype):
        rand = _random(device, dtype)
        for n, d, e in ((6, 2, 3), (5, 1, 1), (4, 3, 7), (131, 5, 2)):
            x, y = rand(n, d), rand(n, e)
            yield Sample(f"N={n} D={d} E={e}", (x, y + x[:, :1]), {})
        x, y = rand(9, 3), rand(9, 2)
        for kernel in KERNELS:
            for unbiased in (True, False):
                options = {"kernel": kernel, "bandwidth_x": 1.5, "bandwidth_y": 0.75, "unbiased": unbiased}
                yield Sample(f"{kernel} unbiased={unbiased}", (x, y), options)
            options = {"kernel": kernel, "bandwidth_x": (0.5, 2.0), "bandwidth_y": (1.0, 2.0, 4.0)}
            yield Sample(f"{kernel}, bandwidths", (x, y), options)
        yield Sample("strided", (rand(3, 16).t()[::2], rand(8, 8)[:, ::3]), {"unbiased": True})
        yield Sample("expanded", (rand(7, 1).expand(7, 4), rand(7, 2)), {"bandwidth_x": 2.0})


def _random(device: torch.device, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(4)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


MMD = register(_Mmd("mmd", dimwise=False))
MMD_DIMWISE = register(_Mmd("mmd_dimwise", dimwise=True))
HSIC = register(_Hsic())
