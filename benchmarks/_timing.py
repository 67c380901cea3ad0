"""Timing that can be believed: providers interleaved in one process, warm, medians with p20 and p80, the load stated.

A ratio of two medians from one call of :func:`compare` is what the benchmarks report; absolute times wander by tens of
percent on a shared machine.
"""

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# Providers see caches as a training step leaves them: larger than any L2, so that no operand stays on the GPU's chip.
FLUSH_BYTES = 256 << 20


@dataclass(frozen=True)
class Stats:
    median_ms: float
    p20_ms: float
    p80_ms: float


def full() -> bool:
    """Whether STRUCFAST_FULL=1 asks for the long tier too; by default a whole run ends within ten minutes."""
    return os.environ.get("STRUCFAST_FULL") == "1"


def warm_allocator() -> str:
    """Keep glibc from mapping every large tensor afresh (33 ms of page faults for 134 MB); returns what is in force."""
    if os.environ.get("STRUCFAST_ALLOCATOR") == "default":
        return "default"
    try:
        libc = ctypes.CDLL("libc.so.6")
        # M_MMAP_MAX = -4 and M_TRIM_THRESHOLD = -1: the run-time form of MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_.
        warm = libc.mallopt(-4, 0) and libc.mallopt(-1, -1)
    except (OSError, AttributeError):
        warm = False
    return "warm (mmap_max 0, no trim)" if warm else "default"


def compare(
    providers: dict[str, Callable[[], object]],
    *,
    device: str = "cpu",
    rounds: int = 30,
    seconds: float = 4.0,
) -> dict[str, Stats]:
    """Time every provider in turn, round after round, for about ``seconds`` in all.

    A round calls each provider often enough to fill about 3 ms, so that the clock does not count; rounds are cut short
    when the budget is spent, never below three.
    """
    measure = _measure_cuda if device.startswith("cuda") else _measure_cpu
    inner = {}
    for name, call in providers.items():
        # The first call compiles, and fills pools and caches.
        call()
        once = measure(call, 1)
        # Calls that fill a round by themselves need no better estimate of how many do.
        if once < 50.0:
            call()
            once = min(once, *(measure(call, 1) for _ in range(3)))
        inner[name] = max(1, min(1000, int(3.0 / max(once, 1e-4))))
    samples: dict[str, list[float]] = {name: [] for name in providers}
    start = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - start > seconds:
            break
        for name, call in providers.items():
            samples[name].append(measure(call, inner[name]))
    return {name: _stats(values) for name, values in samples.items()}


def _stats(values: Sequence[float]) -> Stats:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Stats(statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)])


def _measure_cpu(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) * 1e3 / repeats


_flush_buffer: torch.Tensor | None = None


def _measure_cuda(call: Callable[[], object], repeats: int) -> float:
    """Median-free single figure: the mean over ``repeats`` launches, each on a cold L2, by CUDA events."""
    global _flush_buffer
    if _flush_buffer is None:
        _flush_buffer = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    pairs = []
    for _ in range(min(repeats, 50)):
        _flush_buffer.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def allocated_bytes(call: Callable[[], object], *, warm: bool = False) -> int:
    """Bytes that one call allocates on the CPU, every tensor counted, freed or not; ``warm``: it has run before."""
    if not warm:
        call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
