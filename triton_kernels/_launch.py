"""One way to start a kernel: device guard, options, interpreter, and a recorder for ahead-of-time compilation."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import triton

# Triton reads TRITON_INTERPRET when a kernel is decorated, so the value at import is the one that counts.
INTERPRETED = bool(triton.knobs.runtime.interpret)

# What a launch assumes where there is no GPU to ask (the interpreter, the AOT recorder): an H200's 132.
_DEFAULT_PROCESSORS = 132

_recorder: list[dict[str, Any]] | None = None


@contextlib.contextmanager
def recording() -> Iterator[list[dict[str, Any]]]:
    """Collect launches instead of running them; tensors may then live on the meta device."""
    global _recorder
    if _recorder is not None:
        raise RuntimeError("launches are being recorded already")
    _recorder = []
    try:
        yield _recorder
    finally:
        _recorder = None


def check_device(name: str, *tensors: torch.Tensor | None) -> torch.device:
    """The one device all tensors share.

    Raises:
        RuntimeError: the tensors are not on a GPU (and neither the interpreter nor the recorder is on).
        ValueError: the tensors live on several devices.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    device = present[0].device
    for tensor in present[1:]:
        if tensor.device != device:
            raise ValueError(f"{name}: all tensors must be on one device, got {device} and {tensor.device}")
    if device.type != "cuda" and not INTERPRETED and _recorder is None:
        raise RuntimeError(
            f"{name}: Triton kernels need CUDA or ROCm tensors, got a tensor on {device}; "
            "set TRITON_INTERPRET=1 before the import to run them on the CPU (slow, for tests)"
        )
    return device


@functools.cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def processors(device: torch.device) -> int:
    """Number of streaming multiprocessors of ``device``."""
    if device.type != "cuda":
        return _DEFAULT_PROCESSORS
    return _processors(torch.cuda.current_device() if device.index is None else device.index)


def register_limit(num_warps: int) -> int:
    """Most registers a thread of a program of ``num_warps`` warps can have."""
    return min(65536 // (32 * num_warps), 255)


def launch(
    kernel: Any,
    grid: int,
    device: torch.device,
    *args: Any,
    num_warps: int,
    num_stages: int = 2,
    max_registers: int | None = None,
    **constants: Any,
) -> None:
    """Start ``grid`` programs of ``kernel`` on the device's current stream.

    ``args`` are the kernel's run-time arguments in order, ``constants`` its constexpr ones. ``max_registers`` (NVIDIA
    only) replaces ptxas's own choice of occupancy, which now and then spills a few bytes to round it up.
    """
    if grid >= 2**31:
        raise ValueError(f"{kernel.__name__}: a grid of {grid} programs is over the limit of 2**31 - 1")
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    if max_registers is not None and torch.version.hip is None:
        options["maxnreg"] = max_registers
    if _recorder is not None:
        _recorder.append({"kernel": kernel, "args": args, "constants": constants, "options": options, "grid": grid})
        return
    guard = contextlib.nullcontext()
    if device.type == "cuda" and device.index is not None and device.index != torch.cuda.current_device():
        guard = torch.cuda.device(device)
    with guard:
        kernel[(grid,)](*args, **constants, **options)
