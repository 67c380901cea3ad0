"""Kernels compiled for one x86-64 level each, in the place of the choice that the loader makes in the product."""

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A CPU flag that stands for the level (Linux names).
LEVELS = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512vl"}
_FLAGS = ("-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-Wno-psabi")


def cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), ()))


def compile_level(
    level: str, wrapper: str, kernels: Sequence[str], folder: Path, *, elsewhere: str, optimise: str = "-O3"
) -> ctypes.CDLL:
    """The C functions of ``wrapper`` with files of csrc/cpu, built for ``level``; skips where that cannot run.

    Args:
        elsewhere: what covers these kernels on a machine that is no x86-64.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"x86-64 levels exist on x86-64 only; elsewhere {elsewhere} the one build")
    if LEVELS[level] not in cpu_flags():
        pytest.skip(f"this CPU cannot run -march={level}; run on one with {LEVELS[level]}")
    compiler = os.environ.get("CXX", "g++").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler {compiler[0]}: install g++ or set CXX")
    source, library = folder / "wrapper.cpp", folder / "kernels.so"
    source.write_text(wrapper)
    flags = [*_FLAGS, optimise, f"-march={level}", "-mprefer-vector-width=512", "-DSF_NO_CLONES", f"-I{ROOT}"]
    flags += [f"-I{ROOT / 'csrc'}"]
    files = [str(source), *(str(ROOT / "csrc/cpu" / name) for name in kernels)]
    subprocess.run([*compiler, *flags, *files, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
