"""``lp_nested_log_prob``: log-density of the ISA prior, an Lp-nested distribution of depth 2, and its backward.

With ``v = (sum_j |z_j|^p_k)^(1/p_k)``, ``E = v^p0 / s_k``, ``u_j = |z_j| / v``, ``w_j = u_j^p_k`` and
``H = -sum_j w_j log w_j`` of each subspace:

Forward:  ``log p(z) = C - sum_k E``, with ``C`` of the parameters alone
Backward: ``dz_j = -(p0 / s_k) v^(p0 - 1) u_j^(p_k - 1) sign z_j``;  ``dp_k = dC/dp_k + p0 E H / p_k^2``;
          ``dp0 = dC/dp0 - sum_k E log v``;  ``ds_k = (E - n_k / p0) / s_k``
"""

import math
from collections.abc import Sequence

import torch

from .. import reference
from ..reference.modulate import compute_dtype
from . import _validate
from ._registry import BACKENDS, OpSpec, Sample, dispatch, mask_of, register

_NAME = "lp_nested_log_prob"


def lp_nested_log_prob(
    z: torch.Tensor, sizes: Sequence[int], p0: torch.Tensor, p: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Log-density of independent subspaces under the ISA prior.

    With ``v_k = (sum_j |z_kj|^p_k)^(1/p_k)`` the norm of the k-th group of ``n_k`` consecutive coordinates,

        ``log p(z) = sum_k [ lgamma(1 + n_k/p_k) - lgamma(1 + n_k/p0) - n_k (log 2 + lgamma(1 + 1/p_k))
        - (n_k/p0) log s_k - v_k^p0 / s_k ]``,

    the paper's Lp-nested density (equations 6 to 10) with its ISA radial density (equation 11), and with the
    factors of ``log f(z)`` cancelled, so that it is finite at z = 0. ``p0 = p = 2`` and ``scale = 2`` is N(0, I).

    Args:
        z: (N, n) points, float32, float64, bfloat16 or float16.
        sizes: the K subspace sizes ``n_k``, positive, summing to n. Where ``n_k`` is 1, ``p_k`` has no effect.
        p0: () root exponent, > 0.
        p: (K,) exponents of the subspaces, > 0.
        scale: () or (K,), > 0, in units of ``z^p0``; the length scale is ``scale^(1/p0)``.

    Returns:
        (N,) natural log-densities, float64 for float64 ``z`` and float32 otherwise. Values of exponents and scales are
        not checked. Gradients reach z, p0, p and scale; at ``z_j = 0`` and where a whole subspace is 0 that of z is 0.
        A density below the smallest float gives -inf, with gradients of z that are still right.

    Raises:
        TypeError: an argument is no floating-point tensor, or a size is no int.
        ValueError: a shape or a device does not fit, or the sizes do not sum to n.

    Reference: Stuehmer, Turner, Nowozin, "Independent Subspace Analysis for Unsupervised Learning of Disentangled
    Representations" (ISA-VAE), 2020.
    """
    sizes = tuple(sizes)
    for argument, value in (("z", z), ("p0", p0), ("p", p), ("scale", scale)):
        _validate.check_float_tensor(_NAME, argument, value)
        if value is not z and value.device != z.device:
            raise ValueError(f"{_NAME}: {argument} must be on z's device {z.device}, got {value.device}")
    _check_shapes(z, sizes, p0, p, scale)
    if z.dtype not in _WIDE:
        z = z.float()
    if not (p0.dtype in _WIDE and p.dtype in _WIDE and scale.dtype in _WIDE):
        p0, p, scale = (t if t.dtype in _WIDE else t.float() for t in (p0, p, scale))
    return dispatch(SPEC, (z, p0, p, scale), (tuple(map(int, sizes)),))


_WIDE = (torch.float32, torch.float64)


def _check_shapes(z: torch.Tensor, sizes: tuple, p0: torch.Tensor, p: torch.Tensor, scale: torch.Tensor) -> None:
    if z.dim() != 2:
        raise ValueError(f"{_NAME}: z must be (N, n), got shape {tuple(z.shape)}")
    for size in sizes:
        if not _validate.is_int(size):
            raise TypeError(f"{_NAME}: sizes must be ints, got {type(size).__name__} in {sizes}")
    if not sizes or min(sizes) < 1 or sum(sizes) != z.shape[1]:
        raise ValueError(f"{_NAME}: sizes must be positive and sum to the {z.shape[1]} dims of z, got {sizes}")
    if p0.dim() != 0:
        raise ValueError(f"{_NAME}: p0 must be a scalar tensor, got shape {tuple(p0.shape)}")
    if p.shape != (len(sizes),):
        raise ValueError(f"{_NAME}: p must have shape (K,) = ({len(sizes)},), got {tuple(p.shape)}")
    if scale.dim() != 0 and scale.shape != p.shape:
        raise ValueError(
            f"{_NAME}: scale must be a scalar or have shape (K,) = ({len(sizes)},), got {tuple(scale.shape)}"
        )


class _LpNested(OpSpec):
    name = _NAME
    schema = "(Tensor z, int[] sizes, Tensor p0, Tensor p, Tensor scale) -> Tensor"
    backward_schema = (
        "(Tensor grad, Tensor z, int[] sizes, Tensor p0, Tensor p, Tensor scale, int mask)"
        " -> (Tensor dz, Tensor dp0, Tensor dp, Tensor dscale)"
    )
    # The public function upcasts half types: a log-density is float32 at least.
    dtypes = {backend: _WIDE for backend in BACKENDS}
    # There is no CUDA C++ kernel.
    order = {"cpu": ("cpp",), "cuda": ("triton",)}

    def public(self):
        return lp_nested_log_prob

    def reference(self, tensors, statics):
        z, p0, p, scale = tensors
        return reference.lp_nested_log_prob(z, statics[0], p0, p, scale)

    def pack(self, tensors, statics):
        z, p0, p, scale = tensors
        return (z, statics[0], p0, p, scale)

    def unpack(self, raw):
        z, sizes, p0, p, scale = raw
        return (z, p0, p, scale), (sizes,)

    def backward_call(self, grads, tensors, saved, statics, needs):
        z, p0, p, scale = tensors
        return (grads[0], z, statics[0], p0, p, scale, mask_of(needs)), list

    def fake(self, z, sizes, p0, p, scale):
        return z.new_empty((z.shape[0],))

    def fake_backward(self, grad, z, sizes, p0, p, scale, mask):
        return tuple(
            t.new_empty(t.shape if mask >> i & 1 else (0,)) for i, t in enumerate((z, p0, p, scale))
        )

    def aten(self, z, sizes, p0, p, scale):
        return reference.lp_nested_log_prob(z, sizes, p0, p, scale)

    def aten_backward(self, grad, z, sizes, p0, p, scale, mask):
        dtype = compute_dtype(z)
        root, exponents, scales = p0.to(dtype), p.to(dtype), scale.to(dtype).expand(len(sizes))
        of_z, entropies, energies, logs = [], [], [], []
        for k, part in enumerate(z.split(list(sizes), dim=1)):
            size = part.abs()
            zero, empty = size == 0, (size == 0).all(dim=1)
            log_size = torch.where(zero, 1.0, size).log2()
            largest = torch.where(zero, -math.inf, log_size).amax(dim=1).where(~empty, 0.0)
            shifted = log_size - largest.unsqueeze(1)
            total = torch.where(zero, 0.0, torch.exp2(exponents[k] * shifted)).sum(dim=1).where(~empty, 1.0)
            log_norm = largest + total.log2() / exponents[k]
            log_share = log_size - log_norm.unsqueeze(1)
            # Not from the energy, which may overflow where this does not.
            slope = torch.exp2(((root - 1) * log_norm).unsqueeze(1) + (exponents[k] - 1) * log_share)
            of_z.append(torch.where(zero, 0.0, -root / scales[k] * slope * part.sign() * grad.unsqueeze(1)))
            weight = torch.where(zero, 0.0, torch.exp2(exponents[k] * log_share))
            entropies.append(-math.log(2) * exponents[k] * (weight * log_share).sum(dim=1))
            energies.append(grad * torch.exp2(root * log_norm).where(~empty, 0.0) / scales[k])
            logs.append(math.log(2) * log_norm)
        energy, log_norm, entropy = (torch.stack(parts, dim=1) for parts in (energies, logs, entropies))
        sums = torch.cat(
            [grad.sum(dim=0, keepdim=True), (energy * log_norm).sum().unsqueeze(0), (energy * entropy).sum(dim=0),
             energy.sum(dim=0)]
        )  # fmt: skip
        found = (torch.cat(of_z, dim=1), *parameter_gradients(sums, sizes, p0, p, scale))
        return tuple(t if mask >> i & 1 else t.new_empty((0,)) for i, t in enumerate(found))

    def triton_kernels(self):
        from ..triton_kernels import lp_nested as kernels

        return kernels.lp_nested_log_prob_forward, kernels.lp_nested_log_prob_backward

    def samples(self, device, dtype):
        generator = torch.Generator().manual_seed(3)

        def convert(values):
            return torch.as_tensor(values, dtype=torch.float64).to(device, dtype)

        def points(*shape):
            # Away from 0, where the density has kinks and cusps; a sample of its own has zeros.
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return convert(values + 0.25 * values.sign())

        def call(n, sizes, p0=2.1, p=None, scale=None):
            p = [1.5 + 0.4 * k for k in range(len(sizes))] if p is None else p
            return points(n, sum(sizes)), sizes, convert(p0), convert(p), convert(1.3 if scale is None else scale)

        yield Sample("ragged", call(7, (4, 2, 1), scale=[0.5, 1.25, 2.0]), {})
        yield Sample("5 x 4", call(11, (4,) * 5, p=[2.2] * 5), {})
        yield Sample("one dim", call(5, (1,)), {})
        yield Sample("small exponents", call(5, (2, 3), p0=0.75, p=[0.5, 1.25]), {})
        yield Sample("exponents 1 and 2", call(6, (3, 2, 1, 3), p0=2.0, p=[2.0, 1.0, 2.0, 1.0]), {})
        yield Sample("empty batch", call(0, (2, 3)), {})
        for rows, sizes in ((1, (1, 1, 3)), (17, (3, 5, 6, 7, 8)), (131, (9, 2, 17)), (70, (33,)), (1030, (2, 1))):
            yield Sample(f"{rows} of {sizes}", call(rows, sizes), {})
        z, *parameters = call(6, (2, 3, 2), p=[2.25, 1.0, 0.5])
        z[0], z[1, :2], z[2, 3], z[3, 5], z[4, 1] = 0.0, 0.0, 0.0, 0.0, -0.0
        yield Sample("zeros", (z, *parameters), {})
        _, sizes, p0, p, _ = call(1, (2, 3))
        yield Sample("strided", (points(5, 12).t()[1:11:2].t(), sizes, p0, convert([1.0, 9.0, 2.5, 9.0])[::2], p), {})
        yield Sample("expanded", (points(1, 5).expand(4, 5), sizes, p0, p[:1].expand(2), p), {})


def parameter_gradients(
    sums: torch.Tensor, sizes: Sequence[int], p0: torch.Tensor, p: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dp0, dp, dscale) from the batch's sums ``[g, g sum_k E_k log v_k, (g E_k H_k), (g E_k)]``, 2 + 2K of them."""
    count = len(sizes)
    n = torch.tensor(list(sizes), dtype=torch.float64, device=p.device)
    root, exponents, scales = p0.double(), p.double(), scale.double()
    upstream, log_sum, entropy, energy = sums.double().split([1, 1, count, count])
    of_root = (n / root**2 * (torch.digamma(1 + n / root) + scales.log())).sum() * upstream - log_sum
    constant = n * (torch.digamma(1 + 1 / exponents) - torch.digamma(1 + n / exponents))
    of_p = (constant * upstream + root * entropy) / exponents**2
    of_scale = (energy - n / root * upstream) / scales
    of_scale = of_scale.sum() if scale.dim() == 0 else of_scale
    return of_root.squeeze(0).to(p0.dtype), of_p.to(p.dtype), of_scale.to(scale.dtype)


SPEC = register(_LpNested())
