"""``kl_terms``: the averaged KL of a batch of posteriors, taken apart in one call.

Forward:  A = log q(z), B_d = log q(z_d), E_g = log q(z_g) of each sample as in ``aggregate_log_density``,
          C = log q(z|x), P = log N(z; 0, I); with means over the batch the five terms are
          C - A,  A - sum_d B_d,  sum_d B_d - P,  A - sum_g E_g,  sum_g E_g - sum_d B_d.
Backward: A, B, E weigh one number each, so that of aggregate_log_density runs with expanded gradients; then C adds
          -g u e^{-logvar/2} to dz, the opposite to dmean and g (u^2 - 1) / 2 to dlogvar, and P adds -g z to dz.
"""

from collections.abc import Sequence

import torch

from .. import reference
from ..reference.aggregate import WEIGHTS, AggregateLogDensity
from ..reference.kl_terms import KLTerms, terms_of
from ._registry import BACKENDS, OpSpec, Sample, Tolerance, dispatch, register
from .aggregate import SPEC as AGGREGATE
from .aggregate import arguments, dims_of_groups

_NAME = "kl_terms"


def kl_terms(
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    *,
    weights: str = "mss",
    dataset_size: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    standard_normal: bool = True,
    _diagonal_offset: int | None = None,
) -> KLTerms:
    """The mean over a batch of log q(z|x) - log p(z), split by minibatch estimates of the aggregate posterior.

    :func:`strucfast.losses.kl_terms` is this for any prior, and over several processes.

    Args:
        z: (B, D) samples, B >= 1, float32, float64, bfloat16 or float16; z[i] was drawn from posterior i.
        mean, logvar: (B, D) of the diagonal Gaussian posteriors; logvar is the log of the variance.
        weights, dataset_size, groups: as in :func:`strucfast.ops.aggregate_log_density`. Without groups each dim is
            one: ``between_groups`` is the total correlation, ``within_groups`` zero.
        standard_normal: p = N(0, I). False: log p(z) is left out of dimwise_kl, for the caller to subtract its own.
        _diagonal_offset: sample i was drawn from posterior ``offset + i`` (posteriors gathered from several processes).

    Returns:
        :class:`strucfast.losses.KLTerms`, five scalars in nats, float32 (float64 where z is).

    Raises:
        TypeError, ValueError: as :func:`strucfast.ops.aggregate_log_density`; an empty batch; under "naive" too a
            number of posteriors that is not that of the samples.

    References: Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", equation 2; Esmaeili et al. 2019,
    "Structured Disentangled Representations", equation 6.
    """
    tensors, statics = arguments(_NAME, z, mean, logvar, weights, dataset_size, groups, _diagonal_offset)
    if z.shape[0] == 0:
        raise ValueError(f"{_NAME}: z must have at least one row, got shape {tuple(z.shape)}")
    if _diagonal_offset is None and z.shape[0] != mean.shape[0]:
        raise ValueError(
            f"{_NAME}: mean must have a row for each of the {z.shape[0]} rows of z, got shape {tuple(mean.shape)}"
        )
    return KLTerms(*dispatch(SPEC, tensors, (*statics, standard_normal)))


class _KLTerms(OpSpec):
    """Statics: those of aggregate_log_density, and whether the prior is N(0, I)."""

    name = _NAME
    schema = (
        "(Tensor z, Tensor mean, Tensor logvar, int weights, int dataset_size, int offset, int[] groups,"
        " bool standard_normal) -> (Tensor index_code_mi, Tensor total_correlation, Tensor dimwise_kl,"
        " Tensor between_groups, Tensor within_groups, Tensor joint, Tensor marginal, Tensor grouped)"
    )
    backward_schema = (
        "(Tensor? grad_index_code_mi, Tensor? grad_total_correlation, Tensor? grad_dimwise_kl,"
        " Tensor? grad_between_groups, Tensor? grad_within_groups, Tensor z, Tensor mean, Tensor logvar, Tensor joint,"
        " Tensor marginal, Tensor grouped, int weights, int dataset_size, int offset, int[] groups,"
        " bool standard_normal, int mask) -> (Tensor dz, Tensor dmean, Tensor dlogvar)"
    )
    num_outputs = 5
    materialize_grads = False
    order = {"cpu": ("cpp",), "cuda": ("triton",)}
    # The public function upcasts half types: a density needs float32.
    dtypes = {backend: (torch.float32, torch.float64) for backend in BACKENDS}
    # The terms are differences of log-densities, which are of this size.
    tolerance = Tolerance(floor=4.0)

    def public(self):
        return kl_terms

    def reference(self, tensors, statics):
        code, dataset_size, offset, labels, standard_normal = statics
        return reference.kl_terms(
            *tensors,
            weights=WEIGHTS[code],
            dataset_size=dataset_size,
            groups=dims_of_groups(labels) or None,
            standard_normal=standard_normal,
            _diagonal_offset=offset,
        )

    def pack(self, tensors, statics):
        return (*tensors, *statics)

    def unpack(self, raw):
        return tuple(raw[:3]), tuple(raw[3:])

    def backward_call(self, grads, tensors, saved, statics, needs):
        mask = int(needs[0]) | int(needs[1]) << 1 | int(needs[2]) << 2
        return (*grads, *tensors, *saved, *statics, mask), list

    def fake(self, z, mean, logvar, weights, dataset_size, offset, groups, standard_normal):
        terms = (z.new_empty(()) for _ in range(self.num_outputs))
        return (*terms, *AGGREGATE.fake(z, mean, logvar, weights, dataset_size, offset, groups))

    def fake_backward(self, *raw):
        z, mean, _ = raw[5:8]
        shapes = (z.shape, mean.shape, mean.shape)
        return tuple(z.new_empty(shape if raw[-1] >> i & 1 else (0,)) for i, shape in enumerate(shapes))

    def aten(self, z, mean, logvar, weights, dataset_size, offset, groups, standard_normal):
        densities = AGGREGATE.aten(z, mean, logvar, weights, dataset_size, offset, groups)
        q = AggregateLogDensity(*densities)
        return (*terms_of(z, mean, logvar, q, bool(groups), standard_normal, offset), *densities)

    def aten_backward(self, *raw):
        grads, (z, mean, logvar), saved, statics, mask = raw[:5], raw[5:8], raw[8:11], raw[11:16], raw[16]
        offset, labels, standard_normal = statics[2:]
        mi, tc, dimwise, between, within = (0.0 if g is None else g / z.shape[0] for g in grads)
        if not labels:
            # The groups are the dims themselves, and what lies within them is constant.
            tc, between, within = tc + between, 0.0, 0.0
        of_densities = (tc + between - mi, dimwise - tc - within, within - between)
        expanded = [z.new_zeros(out.shape) + g for g, out in zip(of_densities, saved)]
        found = AGGREGATE.aten_backward(*expanded, z, mean, logvar, *saved, *statics[:4], mask)
        own = slice(offset, offset + z.shape[0])
        inverse = torch.exp(-0.5 * logvar[own])
        u = (z - mean[own]) * inverse
        pull = mi * u * inverse
        if mask & 1:
            found[0].sub_(pull - dimwise * z if standard_normal else pull)
        if mask & 2:
            found[1][own] += pull
        if mask & 4:
            found[2][own] += 0.5 * mi * (u * u - 1.0)
        return found

    def triton_kernels(self):
        from ..triton_kernels import kl_terms as kernels

        return kernels.kl_terms_forward, kernels.kl_terms_backward

    def samples(self, device, dtype):
        generator = torch.Generator().manual_seed(5)

        def rand(*shape, factor=1.0):
            return (factor * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

        def batch(samples, dims, posteriors=None):
            posteriors = samples if posteriors is None else posteriors
            return rand(samples, dims), rand(posteriors, dims), rand(posteriors, dims, factor=0.5)

        yield Sample("mss", batch(6, 3), {"dataset_size": 1000})
        yield Sample("groups", batch(5, 4), {"dataset_size": 50, "groups": [[2, 0], [1], [3]]})
        yield Sample("mws", batch(7, 2), {"weights": "mws", "dataset_size": 100, "standard_normal": False})
        yield Sample("naive", batch(4, 3), {"weights": "naive", "groups": [[0, 1, 2]]})
        yield Sample("one dim", batch(4, 1), {"dataset_size": 4})
        yield Sample("one posterior", batch(1, 3), {"dataset_size": 1})
        yield Sample("offset", batch(3, 4, 7), {"dataset_size": 9, "groups": [[3, 1], [0, 2]], "_diagonal_offset": 2})
        yield Sample("odd", batch(67, 7), {"dataset_size": 67, "groups": [[0, 6], [1, 2, 3, 4, 5]]})
        yield Sample("blocks", batch(150, 13), {"dataset_size": 5000})
        strided = (rand(4, 12).t()[::2], rand(6, 1).expand(6, 4), rand(12, 8)[::2, ::2])
        yield Sample("strided and expanded", strided, {"dataset_size": 60, "groups": [[0, 1], [2, 3]]})
        mean, logvar = rand(5, 6).chunk(2, dim=1)
        yield Sample("halves of one tensor", (rand(5, 3), mean, logvar), {"dataset_size": 60})


SPEC = register(_KLTerms())
