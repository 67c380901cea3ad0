"""The decomposed KL of a batch: sums over what ``aggregate`` finds, and the terms of a sample's own posterior.

Two launches beside the aggregate's forward (partial sums, the five terms), two beside its backward (what each density
weighs, and the gradients of log q(z|x) and log N(z; 0, I), added to those of the aggregate).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ._launch import check_device, launch
from ._layout import ceil_div
from ._math import load
from .aggregate import aggregate_backward, aggregate_forward

LOG_TWO_PI = tl.constexpr(1.8378770664093453)

_BLOCK = 512
# Programs of the partial sums, which the last kernel adds up at once.
_PARTS = 128


@triton.jit
def _own_posterior(z_ptr, mean_ptr, logvar_ptr, e, mask, dims, offset, z_row, z_column, mean_row, mean_column,
                   logvar_row, logvar_column):  # fmt: skip
    """z, logvar, e^(-logvar/2) and u of the flat elements ``e`` of (samples, dims)."""
    i, d = e // dims, e % dims
    z = load(z_ptr + i * z_row + d * z_column, mask)
    mean = load(mean_ptr + (i + offset) * mean_row + d * mean_column, mask)
    logvar = load(logvar_ptr + (i + offset) * logvar_row + d * logvar_column, mask)
    inverse = tl.exp(-0.5 * logvar)
    return z, logvar, inverse, (z - mean) * inverse


@triton.jit
def _kl_terms_sums_kernel(
    z_ptr, mean_ptr, logvar_ptr, joint_ptr, marginal_ptr, grouped_ptr, partial_ptr, samples, dims, groups, offset,
    parts, z_row, z_column, mean_row, mean_column, logvar_row, logvar_column, BLOCK: tl.constexpr,
):  # fmt: skip
    """(5, parts): sums of log q(z|x), log q(z), log q(z_d), log q(z_g) and log N(z; 0, I)."""
    pid = tl.program_id(0)
    dtype: tl.constexpr = z_ptr.dtype.element_ty
    posterior = tl.zeros([BLOCK], dtype)
    joint = tl.zeros([BLOCK], dtype)
    marginal = tl.zeros([BLOCK], dtype)
    grouped = tl.zeros([BLOCK], dtype)
    prior = tl.zeros([BLOCK], dtype)
    for tile in range(pid, tl.cdiv(samples * dims, BLOCK), parts):
        e = tile * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
        mask = e < samples * dims
        z, logvar, _, u = _own_posterior(
            z_ptr, mean_ptr, logvar_ptr, e, mask, dims, offset, z_row, z_column, mean_row, mean_column, logvar_row,
            logvar_column,
        )  # fmt: skip
        posterior += tl.where(mask, -0.5 * (u * u + logvar + LOG_TWO_PI), 0.0)
        prior += tl.where(mask, -0.5 * (z * z + LOG_TWO_PI), 0.0)
        # One joint density a sample, at most a group per dim: the same elements cover them.
        joint += load(joint_ptr + e, e < samples)
        marginal += load(marginal_ptr + e, mask)
        grouped += load(grouped_ptr + e, e < samples * groups)
    tl.store(partial_ptr + pid, tl.sum(posterior, axis=0))
    tl.store(partial_ptr + parts + pid, tl.sum(joint, axis=0))
    tl.store(partial_ptr + 2 * parts + pid, tl.sum(marginal, axis=0))
    tl.store(partial_ptr + 3 * parts + pid, tl.sum(grouped, axis=0))
    tl.store(partial_ptr + 4 * parts + pid, tl.sum(prior, axis=0))


@triton.jit
def _kl_terms_finish_kernel(
    partial_ptr, mi_ptr, tc_ptr, dimwise_ptr, between_ptr, within_ptr, samples, parts, GROUPED: tl.constexpr,
    STANDARD_NORMAL: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, PARTS)
    mask = at < parts
    share = 1.0 / tl.full([], samples, partial_ptr.dtype.element_ty)
    posterior = tl.sum(load(partial_ptr + at, mask), axis=0) * share
    joint = tl.sum(load(partial_ptr + parts + at, mask), axis=0) * share
    marginal = tl.sum(load(partial_ptr + 2 * parts + at, mask), axis=0) * share
    grouped = tl.sum(load(partial_ptr + 3 * parts + at, mask), axis=0) * share
    prior = tl.sum(load(partial_ptr + 4 * parts + at, mask), axis=0) * share
    tl.store(mi_ptr, posterior - joint)
    tl.store(tc_ptr, joint - marginal)
    tl.store(dimwise_ptr, marginal - prior if STANDARD_NORMAL else marginal)
    tl.store(between_ptr, joint - (grouped if GROUPED else marginal))
    # Without groups nothing was added up.
    tl.store(within_ptr, grouped - marginal if GROUPED else grouped)


@triton.jit
def _scalar(pointer, like):
    if pointer is None:
        return tl.zeros([], like.dtype)
    else:
        return tl.load(pointer)


@triton.jit
def _kl_terms_weights_kernel(
    mi_ptr, tc_ptr, dimwise_ptr, between_ptr, within_ptr, out_ptr, samples, GROUPED: tl.constexpr,
):  # fmt: skip
    """What every log q(z|x), log q(z), log q(z_d), log q(z_g) and log N(z; 0, I) weighs in the loss."""
    share = 1.0 / tl.full([], samples, out_ptr.dtype.element_ty)
    mi, tc, dimwise = _scalar(mi_ptr, share), _scalar(tc_ptr, share), _scalar(dimwise_ptr, share)
    between, within = _scalar(between_ptr, share), _scalar(within_ptr, share)
    tl.store(out_ptr, mi * share)
    tl.store(out_ptr + 1, (tc + between - mi) * share)
    tl.store(out_ptr + 2, (dimwise - tc - (within if GROUPED else between)) * share)
    tl.store(out_ptr + 3, (within - between) * share)
    tl.store(out_ptr + 4, -dimwise * share)


@triton.jit
def _kl_terms_own_kernel(
    z_ptr, mean_ptr, logvar_ptr, weights_ptr, dz_ptr, dmean_ptr, dlogvar_ptr, samples, dims, offset, z_row, z_column,
    mean_row, mean_column, logvar_row, logvar_column, STANDARD_NORMAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the gradients of log q(z|x) and log N(z; 0, I) to dz and to the samples' own rows of dmean and dlogvar."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = e < samples * dims
    z, _, inverse, u = _own_posterior(
        z_ptr, mean_ptr, logvar_ptr, e, mask, dims, offset, z_row, z_column, mean_row, mean_column, logvar_row,
        logvar_column,
    )  # fmt: skip
    weight = tl.load(weights_ptr)
    # A term without weight adds nothing, even where u is infinite.
    pull = tl.where(weight == 0.0, 0.0, weight * u * inverse)
    own = offset * dims + e
    if dz_ptr is not None:
        total = load(dz_ptr + e, mask) - pull
        if STANDARD_NORMAL:
            total -= tl.load(weights_ptr + 4) * z
        tl.store(dz_ptr + e, total, mask=mask)
    if dmean_ptr is not None:
        tl.store(dmean_ptr + own, load(dmean_ptr + own, mask) + pull, mask=mask)
    if dlogvar_ptr is not None:
        slope = tl.where(weight == 0.0, 0.0, 0.5 * weight * (u * u - 1.0))
        tl.store(dlogvar_ptr + own, load(dlogvar_ptr + own, mask) + slope, mask=mask)


def kl_terms_forward(
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    weights: int,
    dataset_size: int,
    offset: int,
    groups: Sequence[int],
    standard_normal: bool,
    *,
    parts: int = _PARTS,
) -> tuple[torch.Tensor, ...]:
    """The five terms, each (), then joint, marginal and grouped log-densities for the backward.

    Args:
        z: ``(S, D)`` samples, S >= 1, float32 or float64, any strides.
        mean, logvar: ``(M, D)`` in z's dtype; row ``offset + i`` is the posterior that drew sample i.
        weights, dataset_size, offset, groups: as in :func:`aggregate_forward`.
        standard_normal: whether log N(z; 0, I) is subtracted from the third term.
        parts: most programs that share the sums, 128 at most.
    """
    device = check_device("kl_terms", z, mean, logvar)
    densities = aggregate_forward(z, mean, logvar, weights, dataset_size, offset, groups)
    (samples, dims), num_groups = z.shape, densities[2].shape[1]
    parts = min(ceil_div(samples * dims, _BLOCK), parts)
    partial = z.new_empty((5, parts))
    terms = tuple(z.new_empty(()) for _ in range(5))
    launch(
        _kl_terms_sums_kernel, parts, device, z, mean, logvar, *densities, partial, samples, dims, num_groups, offset,
        parts, *z.stride(), *mean.stride(), *logvar.stride(), BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    launch(
        _kl_terms_finish_kernel, 1, device, partial, *terms, samples, parts, GROUPED=num_groups > 0,
        STANDARD_NORMAL=standard_normal, PARTS=_PARTS, num_warps=4,
    )  # fmt: skip
    return (*terms, *densities)


def kl_terms_backward(
    grad_mi: torch.Tensor | None,
    grad_tc: torch.Tensor | None,
    grad_dimwise: torch.Tensor | None,
    grad_between: torch.Tensor | None,
    grad_within: torch.Tensor | None,
    z: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    joint: torch.Tensor,
    marginal: torch.Tensor,
    grouped: torch.Tensor,
    weights: int,
    dataset_size: int,
    offset: int,
    groups: Sequence[int],
    standard_normal: bool,
    mask: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients (dz, dmean, dlogvar) of :func:`kl_terms_forward`.

    Args:
        grad_*: (), upstream gradients of the terms; None for what nothing depends on.
        joint, marginal, grouped: the forward's last three outputs.
        mask: bit i asks for output i; the others are empty tensors of size (0,).
    """
    grads = (grad_mi, grad_tc, grad_dimwise, grad_between, grad_within)
    device = check_device("kl_terms_backward", z, mean, logvar, *grads)
    samples, dims = z.shape
    grouping = len(groups) > 0
    of_densities = z.new_empty((5,))
    launch(
        _kl_terms_weights_kernel, 1, device, *grads, of_densities, samples, GROUPED=grouping, num_warps=1,
    )  # fmt: skip
    # One number for all samples, expanded; None where no term with a gradient holds the density.
    mi, tc, dimwise, between, within = (g is not None for g in grads)
    held = (mi or tc or between, tc or dimwise or (within if grouping else between), grouping and (between or within))
    expanded = [
        of_densities[number].expand(out.shape) if there else None
        for number, out, there in zip((1, 2, 3), (joint, marginal, grouped), held)
    ]
    found = aggregate_backward(
        *expanded, z, mean, logvar, joint, marginal, grouped, weights, dataset_size, offset, groups, mask
    )
    asked = [t if mask >> i & 1 else None for i, t in enumerate(found)]
    if mask and (mi or (dimwise and standard_normal)):
        launch(
            _kl_terms_own_kernel, ceil_div(samples * dims, _BLOCK), device, z, mean, logvar, of_densities, *asked,
            samples, dims, offset, *z.stride(), *mean.stride(), *logvar.stride(), STANDARD_NORMAL=standard_normal,
            BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return found
