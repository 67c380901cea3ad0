"""Shared by the checks that run under TRITON_INTERPRET=1: inputs inside NaN guards, and the error rule."""

import torch
from strucfast.triton_kernels import _launch

if not _launch.INTERPRETED:
    raise RuntimeError("these checks need TRITON_INTERPRET=1 before the first import of triton")

# Deterministic mode fills every fresh allocation with NaN: a kernel that leaves an element unwritten is seen.
torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = True

ACTIVATIONS = ("identity", "mish", "silu", "relu", "elu", "tanh")
SCALE_MAPS = ("exp", "exp_half", "softplus_shift", "sigmoid2", "one_plus")


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """The same values and strides with NaN before and behind them in memory: a stray read that counts is seen."""
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) + 1
    memory = torch.full((extent + 128,), float("nan"), dtype=tensor.dtype)
    inside = torch.as_strided(memory, tensor.shape, tensor.stride(), 64)
    return inside.copy_(tensor)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int, last: bool = False) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return guarded(channels_last(values) if last else values)


def gradients(function, tensors, grads, dtype):
    """Outputs of ``function`` and the gradients of its tensors (None stays None), all computed in ``dtype``."""
    leaves = [None if t is None else t.detach().to(dtype).clone().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    present = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(outputs, present, [g.to(dtype) for g in grads]))
    return [o.detach() for o in outputs], [None if leaf is None else next(found) for leaf in leaves]


def assert_close(actual, truth, eager, *, slack: float = 16.0, floor: float = 1e-30, label: str = "") -> None:
    """``err(kernel) <= 2 err(eager in the same dtype) + slack eps scale``, both against float64.

    Twice eager's error is no loss to whoever replaces eager; the slack covers sums in another order and statistics
    that are rounded to the compute type between forward and backward. ``floor`` is the size of the terms behind a
    result that cancellation leaves smaller.
    """
    assert actual.shape == truth.shape, f"{label}: shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    scale = float(truth.abs().max()) if truth.numel() else 0.0
    bound = 2 * (eager.double() - truth).abs() + slack * torch.finfo(actual.dtype).eps * max(scale, floor)
    error = (actual.double() - truth).abs()
    # Written so that NaN fails.
    assert bool((error <= bound).all()), f"{label}: error {float(error.max()):.3g}, scale {scale:.3g}"
