"""``aggregate_log_density``: log q(z), log q(z_d) and log q(z_g) in one pass over (sample, posterior) pairs.

Forward:  u_ijd = (z_id - mean_jd) e^{-logvar_jd / 2};  L_ijd = -1/2 (u^2 + logvar_jd + log 2 pi);
          A_i = LSE_j(log w_ij + sum_d L);  B_id = LSE_j(log w_ij + L);  E_ig = LSE_j(log w_ij + sum_{d in g} L)
Backward: G_ijd = gA_i e^{log w + sum L - A_i} + gB_id e^{log w + L - B_id} + gE_ig e^{log w + sum_g L - E_ig};
          dz_id = -sum_j G u e^{-logvar/2};  dmean_jd = sum_i G u e^{-logvar/2};  dlogvar_jd = 1/2 sum_i G (u^2 - 1).
          Only A, B and E are kept: O(S D).
"""

import math
from collections.abc import Sequence

import torch

from .. import reference
from ..reference.aggregate import WEIGHTS, AggregateLogDensity, log_weights
from ..reference.modulate import compute_dtype
from . import _validate
from ._registry import BACKENDS, OpSpec, Sample, dispatch, register

_NAME = "aggregate_log_density"


def aggregate_log_density(
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    *,
    weights: str = "mss",
    dataset_size: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    _diagonal_offset: int | None = None,
) -> AggregateLogDensity:
    """Minibatch estimates of the aggregate posterior's log-density: joint, per dimension and per group of dimensions.

    The aggregate posterior q(z) = 1/N sum_n q(z|x_n) is estimated from a batch of M diagonal Gaussian posteriors with
    importance weights w_ij of posterior j for sample i, in O((S + M) D) memory.

    Args:
        z: (S, D) samples, float32, float64, bfloat16 or float16.
        mean, logvar: (M, D) of the posteriors, M >= 1; logvar is the log of the variance.
        weights: "mss", the exact minibatch stratified weights w_ii = 1/N, w_ij = (N-1)/(N(M-1)); "mws", 1/(N M);
            "naive", 1/M. Under "mss" and "mws" z[i] was drawn from posterior i, so S = M; "naive" takes foreign z.
        dataset_size: N, an int >= M, needed under "mss" and "mws". One posterior under "mss" needs N = 1.
        groups: sequences of dims that together name each of the D dims exactly once, or None.
        _diagonal_offset: sample i was drawn from posterior ``offset + i`` (posteriors gathered from several processes).

    Returns:
        :class:`AggregateLogDensity`: joint (S,), marginal (S, D), grouped (S, G) ((S, 0) without groups), in nats,
        float32 (float64 where z is).

    Raises:
        TypeError: an argument is no floating-point tensor, or dataset_size or a dim is no int.
        ValueError: a shape, a device, weights, dataset_size or groups do not fit.

    References: Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", appendix C (with the symmetric form of
    the stratified weights, which is exact at M = N); Esmaeili et al. 2019, "Structured Disentangled Representations".
    """
    return AggregateLogDensity(
        *dispatch(SPEC, *arguments(_NAME, z, mean, logvar, weights, dataset_size, groups, _diagonal_offset))
    )


def arguments(
    name: str,
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    weights: str,
    dataset_size: int | None,
    groups: Sequence[Sequence[int]] | None,
    offset: int | None,
) -> tuple[tuple[torch.Tensor, ...], tuple]:
    """What the public arguments of the op ``name`` come to: (tensors in the type of the result, statics), checked."""
    _check_shapes(name, z, mean, logvar)
    if weights not in WEIGHTS:
        raise ValueError(f"{name}: weights must be one of {WEIGHTS}, got {weights!r}")
    samples, posteriors = z.shape[0], mean.shape[0]
    if offset is not None and not 0 <= offset <= posteriors - samples:
        raise ValueError(
            f"{name}: _diagonal_offset must be in [0, {posteriors - samples}] for {samples} samples and"
            f" {posteriors} posteriors, got {offset}"
        )
    if weights == "naive":
        dataset_size = 0
    else:
        _check_weights(name, samples, posteriors, weights, dataset_size, offset)
    labels = () if groups is None else _group_labels(name, z.shape[1], groups)
    dtype = compute_dtype(z)
    if z.dtype is not dtype or mean.dtype is not dtype or logvar.dtype is not dtype:
        z, mean, logvar = z.to(dtype), mean.to(dtype), logvar.to(dtype)
    return (z, mean, logvar), (WEIGHTS.index(weights), int(dataset_size), offset or 0, labels)


def _check_shapes(name: str, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor) -> None:
    for argument, value in (("z", z), ("mean", mean), ("logvar", logvar)):
        _validate.check_float_tensor(name, argument, value)
        if value.device != z.device:
            raise ValueError(f"{name}: {argument} must be on z's device {z.device}, got {value.device}")
    if z.dim() != 2 or z.shape[1] < 1:
        raise ValueError(f"{name}: z must be (S, D) with D >= 1, got shape {tuple(z.shape)}")
    if mean.dim() != 2 or mean.shape[1] != z.shape[1] or mean.shape[0] < 1:
        raise ValueError(f"{name}: mean must be (M, D) with M >= 1 and D = {z.shape[1]}, got shape {tuple(mean.shape)}")
    if logvar.shape != mean.shape:
        raise ValueError(f"{name}: logvar must have mean's shape {tuple(mean.shape)}, got shape {tuple(logvar.shape)}")


def _check_weights(
    name: str, samples: int, posteriors: int, weights: str, dataset_size: object, offset: object
) -> None:
    if not _validate.is_int(dataset_size):
        raise TypeError(
            f"{name}: dataset_size must be an int under weights={weights!r}, got {type(dataset_size).__name__}"
        )
    if dataset_size < posteriors:
        raise ValueError(
            f"{name}: dataset_size must be at least the batch of {posteriors} posteriors, got {dataset_size}"
        )
    if offset is None and samples != posteriors:
        raise ValueError(
            f"{name}: weights={weights!r} needs one posterior per sample, got z with {samples} rows and mean with"
            f" {posteriors} (use weights='naive' for samples that the posteriors did not draw)"
        )
    if weights == "mss" and posteriors == 1 and dataset_size != 1:
        raise ValueError(
            f"{name}: weights='mss' is not defined for a batch of 1 unless dataset_size is 1, got {dataset_size}"
        )


def _group_labels(name: str, dims: int, groups: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Per dim the number of its group."""
    labels: list[int | None] = [None] * dims
    for number, group in enumerate(groups):
        if len(group) == 0:
            raise ValueError(f"{name}: groups[{number}] must name at least one dim, got none")
        for dim in group:
            if not _validate.is_int(dim):
                raise TypeError(f"{name}: groups[{number}] must hold ints, got {type(dim).__name__}")
            if not 0 <= dim < dims:
                raise ValueError(f"{name}: groups[{number}] must hold dims in [0, {dims}), got {dim}")
            if labels[dim] is not None:
                raise ValueError(f"{name}: groups must not overlap, dim {dim} is in groups {labels[dim]} and {number}")
            labels[dim] = number
    if None in labels:
        missing = [dim for dim, label in enumerate(labels) if label is None]
        raise ValueError(f"{name}: groups must name every dim of z, dims {missing} are in none")
    return tuple(labels)


def dims_of_groups(labels: Sequence[int]) -> list[list[int]]:
    """The inverse of :func:`_group_labels`, the dims in order."""
    groups: list[list[int]] = [[] for _ in range(max(labels, default=-1) + 1)]
    for dim, label in enumerate(labels):
        groups[label].append(dim)
    return groups


class _AggregateLogDensity(OpSpec):
    """Statics: index into WEIGHTS, dataset size (0 under naive), offset of the diagonal, per dim its group's number."""

    name = _NAME
    schema = (
        "(Tensor z, Tensor mean, Tensor logvar, int weights, int dataset_size, int offset, int[] groups)"
        " -> (Tensor joint, Tensor marginal, Tensor grouped)"
    )
    # An absent upstream gradient skips its exponentials.
    backward_schema = (
        "(Tensor? grad_joint, Tensor? grad_marginal, Tensor? grad_grouped, Tensor z, Tensor mean, Tensor logvar,"
        " Tensor joint, Tensor marginal, Tensor grouped, int weights, int dataset_size, int offset, int[] groups,"
        " int mask) -> (Tensor dz, Tensor dmean, Tensor dlogvar)"
    )
    num_outputs = 3
    materialize_grads = False
    order = {"cpu": ("cpp",), "cuda": ("triton",)}
    # The public function upcasts half types: a density needs float32.
    dtypes = {backend: (torch.float32, torch.float64) for backend in BACKENDS}

    def public(self):
        return aggregate_log_density

    def reference(self, tensors, statics):
        code, dataset_size, offset, labels = statics
        return reference.aggregate_log_density(
            *tensors,
            weights=WEIGHTS[code],
            dataset_size=dataset_size,
            groups=dims_of_groups(labels) or None,
            _diagonal_offset=offset,
        )

    def pack(self, tensors, statics):
        return (*tensors, *statics)

    def unpack(self, raw):
        return tuple(raw[:3]), tuple(raw[3:])

    def split(self, outputs):
        # The outputs are the logarithms of the softmax denominators.
        return tuple(outputs), tuple(outputs)

    def backward_call(self, grads, tensors, saved, statics, needs):
        mask = int(needs[0]) | int(needs[1]) << 1 | int(needs[2]) << 2
        return (*grads, *tensors, *saved, *statics, mask), list

    def fake(self, z, mean, logvar, weights, dataset_size, offset, groups):
        samples = z.shape[0]
        num_groups = max(groups, default=-1) + 1
        return z.new_empty((samples,)), z.new_empty(z.shape), z.new_empty((samples, num_groups))

    def fake_backward(self, grad_joint, grad_marginal, grad_grouped, z, mean, logvar, *rest):
        mask = rest[-1]
        shapes = (z.shape, mean.shape, mean.shape)
        return tuple(z.new_empty(shape if mask >> i & 1 else (0,)) for i, shape in enumerate(shapes))

    def aten(self, z, mean, logvar, *statics):
        outputs = self.fake(z, mean, logvar, *statics)
        for out, value in zip(outputs, self.reference((z, mean, logvar), statics)):
            out.copy_(value)
        return outputs

    def aten_backward(self, *raw):
        grads, (z, mean, logvar), saved, statics, mask = raw[:3], raw[3:6], raw[6:9], raw[9:13], raw[13]
        code, dataset_size, offset, labels = statics
        scale = torch.exp(-0.5 * logvar)
        u = (z.unsqueeze(1) - mean) * scale
        density = -0.5 * (u * u + logvar + math.log(2 * math.pi))
        own, other = log_weights(WEIGHTS[code], mean.shape[0], dataset_size)
        log_w = torch.full(density.shape[:2], other, dtype=z.dtype, device=z.device)
        log_w.diagonal(offset)[: z.shape[0]].fill_(own)
        log_w = log_w.unsqueeze(2)
        weight = torch.zeros_like(density)
        # One softmax per partition: all dims together, each alone, the groups.
        for grad, normaliser, partition in zip(grads, saved, ([0] * z.shape[1], None, labels)):
            if grad is None or normaliser.numel() == 0:
                continue
            if partition is None:
                weight += grad.unsqueeze(1) * torch.exp(log_w + density - normaliser.unsqueeze(1))
                continue
            grad, normaliser = grad.reshape(z.shape[0], 1, -1), normaliser.reshape(z.shape[0], 1, -1)
            index = torch.tensor(partition, device=z.device)
            sums = density.new_zeros((*density.shape[:2], normaliser.shape[2])).index_add_(2, index, density)
            weight += (grad * torch.exp(log_w + sums - normaliser)).index_select(2, index)
        # A pair without weight adds nothing, even where u or u^2 is infinite.
        u = torch.where(weight == 0, torch.zeros_like(u), u)
        pull = weight * u * scale
        outputs = self.fake_backward(*raw)
        for i, value in enumerate((-pull.sum(dim=1), pull.sum(dim=0), 0.5 * (weight * (u * u - 1.0)).sum(dim=0))):
            if mask >> i & 1:
                outputs[i].copy_(value)
        return outputs

    def triton_kernels(self):
        from ..triton_kernels import aggregate as kernels

        return kernels.aggregate_forward, kernels.aggregate_backward

    def samples(self, device, dtype):
        generator = torch.Generator().manual_seed(3)

        def rand(*shape, factor=1.0):
            return (factor * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

        def batch(samples, dims, posteriors=None):
            posteriors = samples if posteriors is None else posteriors
            return rand(samples, dims), rand(posteriors, dims), rand(posteriors, dims, factor=0.5)

        yield Sample("mss", batch(6, 3), {"dataset_size": 1000})
        yield Sample("groups", batch(5, 4), {"dataset_size": 50, "groups": [[2, 0], [1], [3]]})
        yield Sample("mws", batch(7, 2), {"weights": "mws", "dataset_size": 100, "groups": [[0], [1]]})
        yield Sample("naive, foreign z", batch(3, 2, 5), {"weights": "naive"})
        yield Sample("one dim", batch(4, 1), {"dataset_size": 4, "groups": [[0]]})
        yield Sample("one posterior", batch(1, 3), {"dataset_size": 1})
        yield Sample("one posterior, foreign z", batch(5, 3, 1), {"weights": "naive"})
        yield Sample("offset", batch(3, 4, 7), {"dataset_size": 9, "groups": [[3, 1], [0, 2]], "_diagonal_offset": 2})
        yield Sample("no sample", batch(0, 3, 4), {"weights": "naive", "groups": [[0, 1, 2]]})
        yield Sample("odd", batch(67, 7), {"dataset_size": 67, "groups": [[0, 6], [1, 2, 3, 4, 5]]})
        yield Sample("wide", batch(37, 33), {"weights": "mws", "dataset_size": 1000})
        yield Sample("tiles", batch(150, 5), {"dataset_size": 5000})
        z, mean, logvar = batch(19, 10)
        yield Sample("no overlap", (8.0 * mean + 0.05 * z, 8.0 * mean, logvar - 6.0), {"dataset_size": 100})
        strided = (rand(4, 12).t()[::2], rand(6, 1).expand(6, 4), rand(12, 8)[::2, ::2])
        yield Sample("strided and expanded", strided, {"dataset_size": 60, "groups": [[0, 1], [2, 3]]})


SPEC = register(_AggregateLogDensity())
