"""Builds the CUDA kernels and bindings for the emulator, and runs tests in a process where they are a backend."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
STABLE_ABI = ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020a000000000000"]


def build_emulated(folder: Path) -> Path:
    """csrc/cuda and its bindings by the C++ compiler, for CPU tensors; returns the library."""
    cxx = os.environ.get("CXX", "g++").split()
    if shutil.which(cxx[0]) is None:
        pytest.skip(f"no C++ compiler: {cxx[0]!r} is not on the PATH (set CXX or install g++)")
    torch_folder = Path(torch.__file__).parent
    flags = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        "-U_FORTIFY_SOURCE",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
    ]
    flags += [f"-I{HERE / 'emulator'}", f"-I{ROOT / 'csrc'}", "-isystem", str(torch_folder / "include"), *STABLE_ABI]
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), *sorted((ROOT / "csrc/bindings/cuda").glob("*.cpp"))]
    sources.append(HERE / "emulator" / "controls.cpp")
    objects = [folder / f"{source.parent.name}_{source.name}.o" for source in sources]
    running = []
    for source, target in zip(sources, objects):
        command = [*cxx, *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        # Two at a time: the machine may be busy with the rest of the suite.
        if len(running) == 2:
            _finish(running)
    _finish(running)
    library = folder / "libemulated.so"
    link = [
        *cxx,
        "-shared",
        *map(str, objects),
        "-o",
        str(library),
        f"-L{torch_folder / 'lib'}",
        "-ltorch",
        "-ltorch_cpu",
    ]
    done = subprocess.run(link, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return library


def _finish(running: list) -> None:
    while running:
        process = running.pop(0)
        output = process.communicate()[0]
        assert process.returncode == 0, output[-4000:]
        assert "warning" not in output, output[-4000:]


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory) -> Path:
    return build_emulated(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="session")
def run_emulated(emulated_library):
    """Runs a test file in a process whose "cuda" backend is the emulated library, on CPU tensors."""

    def run(path: Path, *arguments: str, order: str = "forward", timeout: int = 900) -> str:
        environment = {
            **os.environ,
            "STRUCFAST_EMULATED_CUDA": str(emulated_library),
            "STRUCFAST_EMULATED_ORDER": order,
        }
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE / "emulator"), environment.get("PYTHONPATH", "")])
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "emulated_backend",
            "-p",
            "no:cacheprovider",
            str(path),
        ]
        result = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
        return result.stdout

    return run


@pytest.fixture
def emulator_selftest(tmp_path) -> dict[str, str]:
    """What the emulator says of one right kernel and four wrong ones."""
    binary = tmp_path / "selftest"
    command = [
        *os.environ.get("CXX", "g++").split(),
        "-std=c++17",
        "-O1",
        "-U_FORTIFY_SOURCE",
        f"-I{HERE / 'emulator'}",
    ]
    command += [f"-I{ROOT / 'csrc'}", str(HERE / "emulator" / "selftest.cpp"), "-o", str(binary)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    output = subprocess.run([str(binary)], capture_output=True, text=True, timeout=60).stdout
    return dict(line.split(": ", 1) for line in output.splitlines())
