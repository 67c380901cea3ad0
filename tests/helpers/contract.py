"""Helpers of the op contract: flattening samples, running them with gradients, and judging errors."""

from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree

EPS = {t: torch.finfo(t).eps for t in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}

UPSTREAM_MAX = 2.0


def is_tensor(value) -> bool:
    return isinstance(value, torch.Tensor)


def map_tensors(sample, function):
    """(args, kwargs) of a sample with ``function`` applied to each tensor."""
    return pytree.tree_map_only(torch.Tensor, function, (sample.args, sample.kwargs))


def tensors_of(tree) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if is_tensor(leaf)]


def retype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Another dtype, the same strides (``Tensor.to`` drops expanded and sliced layouts)."""
    out = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=tensor.device)
    if any(s == 0 for s in tensor.stride()):
        return (
            tensor[tuple(slice(0, 1) if s == 0 else slice(None) for s in tensor.stride())]
            .to(dtype)
            .expand(tensor.shape)
        )
    return out.copy_(tensor)


def outputs_of(function, args, kwargs) -> list[torch.Tensor]:
    result = function(*args, **kwargs)
    return list(result) if isinstance(result, tuple) else [result]


def upstream(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Fixed pseudo-random upstream gradients, exactly representable in bfloat16."""
    found = []
    for i, out in enumerate(outputs):
        generator = torch.Generator().manual_seed(100 + i)
        values = torch.randint(-128, 129, out.shape, generator=generator).to(torch.float64) / 64.0
        found.append(values.to(out.device, out.dtype))
    return found


def run(function, sample, dtype=None):
    """Outputs and gradients of every tensor argument of the sample (in float64 truth when ``dtype`` says so)."""
    leaves = []

    def leaf(tensor):
        tensor = tensor.detach() if dtype is None else retype(tensor.detach(), dtype)
        # requires_grad on the argument itself keeps its strides: the kernel sees what the user passes.
        leaves.append(tensor.requires_grad_())
        return leaves[-1]

    args, kwargs = map_tensors(sample, leaf)
    outputs = outputs_of(function, args, kwargs)
    grads = torch.autograd.grad(outputs, leaves, upstream(outputs), allow_unused=True)
    return [o.detach() for o in outputs], list(grads)


@dataclass
class Verdict:
    ok: bool
    text: str


def max_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    if truth.numel() == 0:
        return 0.0
    difference = (value.double() - truth.double()).abs()
    # A NaN compares false with every bound, so it must count as an infinite error.
    return float("inf") if bool(torch.isnan(difference).any()) else float(difference.max())


def judge(value, truth, eager, dtype, tolerance, reduced=1, floor=1e-30) -> Verdict:
    """``err(kernel) <= factor * err(eager) + slack * eps * scale``, and three aggregate guards.

    Why: eager in the same dtype is what the user replaces, so twice its error is no loss; the eps term covers outputs
    where eager happens to be exact. ``reduced`` is how many terms a sum has: rounding grows like its square root.
    ``floor`` is the size of the terms behind a value that cancellation may leave far smaller (the upstream's).
    The guards catch what a maximum hides: a small error everywhere (rel. L2), a rotated gradient (cosine), a bias.
    """
    if value.shape != truth.shape:
        return Verdict(False, f"shape {tuple(value.shape)}, expected {tuple(truth.shape)}")
    if truth.numel() == 0:
        return Verdict(True, "empty")
    scale = max(float(truth.abs().max()), floor)
    own, theirs = max_error(value, truth), max_error(eager, truth)
    bound = tolerance.factor * theirs + tolerance.slack * EPS[dtype] * scale * max(1.0, reduced) ** 0.5
    if not own <= bound:
        return Verdict(False, f"error {own:.3g} > bound {bound:.3g} (eager {theirs:.3g}, scale {scale:.3g})")
    v, t = value.double().flatten(), truth.double().flatten()
    norm = float(t.norm())
    if norm > 0:
        rounding = EPS[dtype] * max(1.0, reduced) ** 0.5
        # Where the truth is what cancellation left over, eager's own relative error is the yardstick.
        eager_relative = float((eager.double().flatten() - t).norm()) / norm
        rounding *= max(1.0, floor * len(t) ** 0.5 / norm)
        relative = float((v - t).norm()) / norm
        if relative > 64 * rounding + 4 * eager_relative:
            return Verdict(False, f"relative L2 error {relative:.3g}")
        cosine = float(torch.dot(v, t)) / (norm * max(float(v.norm()), 1e-300))
        if cosine < 1 - 1e-3 - 4 * eager_relative:
            return Verdict(False, f"cosine {cosine:.6f}")
        bias = abs(float((v - t).mean())) / (norm / len(t) ** 0.5)
        if bias > 8 * rounding + 4 * eager_relative:
            return Verdict(False, f"signed bias {bias:.3g} of the rms")
    return Verdict(True, f"error {own:.3g} <= {bound:.3g}")
