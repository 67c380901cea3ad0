"""What the machine needs for speed: allocator, threads, device; and saying so."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

# keep freed memory instead of handing it back to the kernel after every tensor. One training step on 2 AVX-512 cores,
# float32, channels_last, default -> these: SAE-12 at 64 px, batch 32: 472 -> 368 ms (71,688 -> 1,026 page faults);
# SAE-6 of width 16 at 32 px, batch 32: 40 -> 30 ms (7,265 -> 35). THP_MEM_ALLOC_ENABLE=1 beside them gained nothing.
ALLOCATOR_SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000"}
GUARD = "STRUCFAST_ALLOCATOR"


def restart_with_allocator(environment: dict[str, str] | None = None) -> None:
    """Start this very command again with the allocator settings, once; they are read before main() runs.

    Does nothing where they are set already, off glibc, or with STRUCFAST_ALLOCATOR=default in the environment.
    """
    environment = dict(os.environ if environment is None else environment)
    if GUARD in environment or not _is_glibc() or not sys.orig_argv:
        return
    environment[GUARD] = "set"
    # what the user set himself stays
    for name, value in ALLOCATOR_SETTINGS.items():
        environment.setdefault(name, value)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:
        # slower, but it runs
        return


def describe_allocator() -> str:
    """One line for run.log."""
    set_here = {name: os.environ[name] for name in ALLOCATOR_SETTINGS if name in os.environ}
    if not set_here:
        return "allocator: default"
    return "allocator: " + " ".join(f"{name}={value}" for name, value in set_here.items())


def _is_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def physical_cores() -> int:
    """Physical cores this process may use: its affinity, without hyper-thread siblings, within the cgroup's quota."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return max(os.cpu_count() or 1, 1)
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
        except OSError:
            cores.add((str(cpu), ""))
    count = len(cores)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        if quota != "max":
            count = min(count, max(round(int(quota) / int(period)), 1))
    except (OSError, ValueError):
        pass
    return max(count, 1)


def cpu_name() -> str:
    """The processor's name as the system has it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def has_bf16_units() -> bool:
    """Whether the processor multiplies bfloat16 itself (AMX, AVX512-BF16, Arm BF16); emulated it is slow."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return bool({"amx_bf16", "avx512_bf16", "bf16"} & set(flags))


def resolve_device(name: str):
    """"auto", "cpu", "cuda" or "cuda:N" as a torch.device.

    Raises:
        ValueError: CUDA is asked for and there is none, or not that many.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0)) if count > 1 else 0
        if index >= count:
            raise ValueError(f"train.device: expected one of {count} CUDA devices of this machine, got {name!r}")
        device = torch.device("cuda", index)
    return device


def set_threads(requested: int) -> int:
    """Set torch's CPU threads to ``requested``, or (0) to this process's share of the physical cores; return them."""
    import torch

    threads = requested or max(physical_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
    torch.set_num_threads(threads)
    return threads


class ThreadChooser:
    """Keeps torch at one thread or at ``threads``, whichever makes the steps quicker now.

    Where other programs run, threads wait for each other at each of a step's hundred barriers: with one busy neighbour
    the demo's step took 387 ms on two threads and 45 ms on one, 18 and 29 ms on a quiet machine. The number of threads
    changes the last bits of a sum, so this is for runs that depend on the clock anyway.

    Args:
        threads: the other choice. period: seconds between two trials at first, twice as long after each that agrees.
    """

    TRIAL = 3

    def __init__(self, threads: int, period: float = 8.0) -> None:
        self.choices = (threads, 1)
        self.chosen = threads
        self._period = self._first_period = period
        self._left = 0.0
        self._trial: list[list[float]] = [[], []]

    def record(self, seconds: float) -> int | None:
        """Take note of a step's time; the new number of threads if the choice has changed."""
        import torch

        if self._left > 0:
            self._left -= seconds
            if self._left <= 0:
                torch.set_num_threads(self.choices[0])
            return None
        place = 0 if len(self._trial[0]) < self.TRIAL else 1
        self._trial[place].append(seconds)
        if len(self._trial[1]) < self.TRIAL:
            torch.set_num_threads(self.choices[0 if len(self._trial[0]) < self.TRIAL else 1])
            return None
        # the first step after a change warms up
        many, one = (sum(times[1:]) for times in self._trial)
        best = self.choices[0 if many <= one else 1]
        self._period = min(2 * self._period, 64.0) if best == self.chosen else self._first_period
        changed, self.chosen = best != self.chosen, best
        self._left, self._trial = self._period, [[], []]
        torch.set_num_threads(best)
        return best if changed else None
