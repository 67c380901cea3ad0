"""Timing that can be believed: providers interleaved in one process, warm, medians with p20 and p80, the load stated.

A ratio of two medians from one call of :func:`compare` is what the benchmarks report; absolute times wander by tens of
percent on a shared machine. Results go to ``<results>/<device>.json`` (schema: benchmarks/results/README.md).
"""

import ctypes
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# Providers see caches as a training step leaves them: larger than any L2, so that no operand stays on the GPU's chip.
FLUSH_BYTES = 256 << 20


@dataclass(frozen=True)
class Stats:
    median_ms: float
    p20_ms: float
    p80_ms: float


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
    rounds: int = 15,
    seconds: float = 4.0,
) -> dict[str, Stats]:
    """Time every provider in turn, round after round, for about ``seconds`` in all.

    A round calls each provider often enough to fill about 3 ms, so that the clock does not count; rounds are cut short
    when the budget is spent, never below three.
    """
    measure = _measure_cuda if device.startswith("cuda") else _measure_cpu
    inner = {}
    for name, call in providers.items():
        for _ in range(3):
            call()
        once = min(measure(call, 1) for _ in range(3))
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


def allocated_bytes(call: Callable[[], object]) -> int:
    """Bytes that one call allocates on the CPU, every tensor counted, freed or not."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())


def device_name(device: str = "cpu") -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    try:
        models = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = models[0].strip() if models else platform.processor()
    except OSError:
        name = platform.processor()
    return f"{name or platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def meta(device: str = "cpu", allocator: str = "default") -> dict:
    return {
        "commit": os.environ.get("COMMIT") or _ask("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"),
        "device": device_name(device),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "driver": _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if "cuda" in device
        else None,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "allocator": allocator,
        "python": platform.python_version(),
    }


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def _ask(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def results_path(device: str = "cpu") -> Path:
    folder = Path(os.environ.get("RESULTS_DIR") or ROOT / "benchmarks" / "results")
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return folder / f"{slug}.json"


KEY = ("op", "case", "direction", "dtype", "layout", "provider")


def record(path: Path, about: dict, rows: list[dict]) -> None:
    """Merge rows into a result file, the newest for a key; replaced in one step, so that a kill leaves the old."""
    known: dict[tuple, dict] = {}
    if path.exists():
        try:
            known = {tuple(row[k] for k in KEY): row for row in json.loads(path.read_text())["results"]}
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path} is no result file ({error}); move it away") from None
    known |= {tuple(row[k] for k in KEY): row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"meta": about, "results": list(known.values())}, indent=1) + "\n")
    os.replace(temporary, path)


def rows_of(op: str, case: str, direction: str, dtype: torch.dtype, layout: str, stats: dict[str, Stats]) -> list[dict]:
    shared = {
        "op": op,
        "case": case,
        "direction": direction,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": layout,
    }
    return [shared | {"provider": name} | {k: round(v, 6) for k, v in asdict(s).items()} for name, s in stats.items()]


_checked: dict[str, str | None] = {}


def refuse_if_wrong(op: str) -> None:
    """A speed-up of a wrong answer is none: raises RuntimeError while the op's correctness tests fail."""
    if op not in _checked:
        # Ops that share a file have their tests in one as well; the contract names every op.
        own = f"tests/ops/test_{op}.py"
        tests = ["tests/ops/test_contract.py", *([own] if (ROOT / own).exists() else [])]
        chosen = f"{op} and (values_and_gradients or poisoned or equals)"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests, "-k", chosen]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        _checked[op] = None if result.returncode == 0 else result.stdout[-1500:]
    if _checked[op] is not None:
        raise RuntimeError(f"no figures for {op}: its correctness tests fail\n{_checked[op]}")
