"""What this machine can do at most, measured by the run itself: figures are stated as shares of these.

The copy bandwidth counts bytes read and bytes written, warm, on all of torch's threads, between tensors far larger
than the last cache: the fastest of torch's copy, libc's memcpy and a loop whose stores go past the caches, which saves
the reading of what is overwritten. The exp throughput is that of float32 values which stay in the caches, by torch.exp
or by our own exp, whichever is faster. Our own two are compiled here, where there is a compiler.
"""

import ctypes
import functools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
COPY_BYTES = 256 << 20
# In and out of one thread take 256 KiB together: inside any L2 cache.
EXPS_PER_THREAD = 32768


def _best_seconds(call: Callable[[], object], repeats: int = 7) -> float:
    """The second best of a few: a ceiling is what the machine does undisturbed, but one reading may be a fluke."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return sorted(times)[1]


def copy_gb_per_s(size: int = COPY_BYTES) -> tuple[float, str]:
    """Bytes read plus bytes written a second, in 1e9, and what reached it."""
    threads = torch.get_num_threads()
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    found = {"torch copy_": _best_seconds(lambda: target.copy_(source))}
    # Whole cache lines for each thread.
    share = size // threads // 64 * 64
    with ThreadPoolExecutor(threads) as pool:

        def memcpy(part: int) -> None:
            # ctypes lets go of the GIL.
            ctypes.memmove(target.data_ptr() + part * share, source.data_ptr() + part * share, share)

        found["memcpy"] = _best_seconds(lambda: list(pool.map(memcpy, range(threads))))
        library = _own()
        if library is not None:

            def past_caches(part: int) -> None:
                library.copy_past_caches(source.data_ptr() + part * share, target.data_ptr() + part * share, share // 4)

            found["stores past the caches"] = _best_seconds(lambda: list(pool.map(past_caches, range(threads))))
    name = min(found, key=found.get)
    return 2 * share * threads / found[name] / 1e9, name


def exp_per_s() -> tuple[float, str]:
    """exp of float32 a second, all threads, and whose it is."""
    threads, calls = torch.get_num_threads(), 50
    count = EXPS_PER_THREAD * threads
    values, out = torch.linspace(-10, 10, count), torch.empty(count)

    def by_torch():
        for _ in range(calls):
            torch.exp(values, out=out)

    found = {"torch.exp": _best_seconds(by_torch)}
    library = _own()
    if library is not None:
        with ThreadPoolExecutor(threads) as pool:

            def part(index: int) -> None:
                begin = 4 * EXPS_PER_THREAD * index
                library.exp_many(values.data_ptr() + begin, out.data_ptr() + begin, EXPS_PER_THREAD, calls)

            found["strucfast's exp"] = _best_seconds(lambda: list(pool.map(part, range(threads))))
    name = min(found, key=found.get)
    return calls * count / found[name], name


@functools.cache
def _own() -> ctypes.CDLL | None:
    """The functions of ceilings.cpp, or None where no compiler can build them."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "ceilings.so")
        command = os.environ.get("CXX", "g++").split()
        command += ["-std=c++17", "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
        command += [
            "-shared",
            "-fPIC",
            f"-I{ROOT / 'csrc'}",
            str(ROOT / "benchmarks/ceilings.cpp"),
            "-o",
            str(library),
        ]
        for more in (["-mprefer-vector-width=512"], []):
            try:
                done = subprocess.run([*command, *more], capture_output=True, timeout=60)
            except (OSError, subprocess.TimeoutExpired):
                return None
            if done.returncode == 0:
                functions = ctypes.CDLL(str(library))
                address, count = ctypes.c_void_p, ctypes.c_int64
                functions.exp_many.argtypes, functions.exp_many.restype = [address, address, count, count], None
                functions.copy_past_caches.argtypes = [address, address, count]
                functions.copy_past_caches.restype = None
                return functions
    return None


@functools.cache
def measure() -> dict:
    """``meta["ceilings"]`` of a result file; measured once in a process, in about five seconds."""
    found = []
    for pause in (0.0, 1.0, 1.0):
        # A shared machine has slow seconds.
        time.sleep(pause)
        found.append((copy_gb_per_s(), exp_per_s()))
    (copy, copied_by), (exps, exp_by) = (max(kind) for kind in zip(*found))
    return {
        "copy_gb_per_s": round(copy, 2),
        "copy_by": copied_by,
        "exp_per_s": float(f"{exps:.4g}"),
        "exp_by": exp_by,
        "threads": torch.get_num_threads(),
    }


def shares(median_ms: float, moved: float | None, exps: float | None) -> dict:
    """Fields of a row that moved ``moved`` bytes and took ``exps`` exponentials at least."""
    fields, ceilings = {}, measure()
    if moved is not None:
        rate = moved / median_ms / 1e6
        fields |= {"gb_per_s": round(rate, 3), "share_of_copy": round(rate / ceilings["copy_gb_per_s"], 4)}
    if exps is not None:
        rate = exps / median_ms / 1e6
        fields |= {"gexp_per_s": round(rate, 4), "share_of_exp": round(rate * 1e9 / ceilings["exp_per_s"], 4)}
    return fields
