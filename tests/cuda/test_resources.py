"""Every .cu compiles for sm_80, sm_90 and sm_100; no kernel touches local memory, and float32 ones no float64 unit."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))
LIBRARY = ROOT / "strucfast/_strucfast_cuda.so"
ARCHITECTURES = ("80", "90", "100")
STATIC_SHARED_LIMIT = 48 * 1024


@dataclass
class Kernel:
    name: str
    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0
    float64_instructions: int = 0
    wide_stores: int = 0


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")
    if found is None:
        pytest.skip("no nvcc: put it on the PATH or set CUDA_HOME to check what the CUDA kernels compile to")
    return found


def tool(name: str) -> str:
    """cuobjdump, from the CUDA toolkit or from the one that triton carries."""
    found = shutil.which(name)
    if found is None:
        triton = pytest.importorskip("triton", reason=f"neither {name} nor triton, which carries it, is installed")
        found = Path(triton.__file__).parent / "backends/nvidia/bin" / name
        if not found.exists():
            pytest.skip(f"{name} is on no PATH and not in {found.parent}; install the CUDA toolkit's binary utilities")
    return str(found)


def compile_cubin(source: Path, architecture: str, folder: Path) -> tuple[Path, str]:
    """The cubin, and ptxas's report with stack and spills per kernel."""
    cubin = folder / f"{source.stem}.{architecture}.cubin"
    command = [nvcc(), "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
    result = subprocess.run([*command, str(source), "-o", str(cubin)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return cubin, result.stderr


def inspect(binary: Path, report: str, *options: str) -> dict[str, Kernel]:
    """Per kernel, what ptxas says of spills and what the machine code holds."""
    kernels: dict[str, Kernel] = {}
    current = None
    for line in report.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            current = kernels.setdefault(match[1], Kernel(match[1]))
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            current.stack += int(match[1])
            current.local += int(match[2]) + int(match[3])
    usage = subprocess.run(
        [tool("cuobjdump"), "-res-usage", *options, str(binary)], capture_output=True, text=True, check=True
    )
    for name, text in re.findall(r"Function (\w+):\s*\n\s*(REG:.*)", usage.stdout + usage.stderr):
        fields = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}
        kernel = kernels.setdefault(name, Kernel(name))
        kernel.registers, kernel.shared = fields["REG"], fields["SHARED"]
        kernel.stack, kernel.local = max(kernel.stack, fields["STACK"]), kernel.local + fields["LOCAL"]
    code = subprocess.run(
        [tool("cuobjdump"), "-sass", *options, str(binary)], capture_output=True, text=True, check=True
    ).stdout
    for name, body in re.findall(r"Function : (\w+)\n(.*?)(?=\n\s*Function : |\Z)", code, re.DOTALL):
        # F2F.F32.F64 and the D* arithmetic: whatever runs on the float64 unit.
        kernels[name].float64_instructions = len(
            re.findall(r"\s(?:DADD|DMUL|DFMA|DSETP|DMNMX|F2F\.\w*F64\w*|MUFU\.RCP64H)", body)
        )
        kernels[name].wide_stores = len(re.findall(r"\sSTG\.E\.(?:128|64) ", body))
    return kernels


def complaints(kernel: Kernel, architecture: str) -> list[str]:
    found = []
    if kernel.stack or kernel.local:
        found.append(f"{kernel.stack} bytes of stack, {kernel.local} bytes of local memory")
    if kernel.shared > STATIC_SHARED_LIMIT:
        found.append(f"{kernel.shared} bytes of static shared memory, at most {STATIC_SHARED_LIMIT}")
    if not is_float64(kernel.name) and kernel.float64_instructions:
        found.append(f"{kernel.float64_instructions} float64 instructions")
    # Vectors of 4 or 8 elements that leave one by one would cost a memory-bound kernel a good part of its speed.
    if re.search(r"modulate_\w*kernelI\w*ELi[48]E", kernel.name) and not kernel.wide_stores:
        found.append("no vector store, although it works on vectors")
    return [f"sm_{architecture} {kernel.name}: {text}" for text in found]


def is_float64(name: str) -> bool:
    """From the mangled name: the first template argument is double."""
    return re.search(r"kernelId", name) is not None


def library_is_current() -> bool:
    """Whether the built library holds all architectures and is younger than every source it is made of."""
    if not LIBRARY.exists():
        return False
    sources = [*(ROOT / "csrc/cuda").iterdir(), *(ROOT / "csrc/common").iterdir()]
    if LIBRARY.stat().st_mtime < max(p.stat().st_mtime for p in sources):
        return False
    listing = subprocess.run([tool("cuobjdump"), "-lelf", str(LIBRARY)], capture_output=True, text=True).stdout
    return all(f"sm_{architecture}." in listing for architecture in ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_local_memory_and_no_float64_arithmetic(architecture, tmp_path):
    """Of the library that is built, or else of every source, compiled here."""
    if library_is_current():
        kernels = inspect(LIBRARY, "", "-arch", f"sm_{architecture}")
    else:
        kernels = {}
        for source in SOURCES:
            kernels |= inspect(*compile_cubin(source, architecture, tmp_path))
    names = " ".join(kernels)
    for source in SOURCES:
        assert f"{source.stem}_cu" in names, f"no kernel of {source.name} was looked at"
    assert any(is_float64(name) for name in kernels) and any(not is_float64(name) for name in kernels)
    found = [text for kernel in kernels.values() for text in complaints(kernel, architecture)]
    assert not found, "\n".join(found)


BAD_KERNELS = """
#include <cuda_runtime.h>
// An array indexed at run time lives in local memory.
__global__ void indexed_kernel(float* out, const int* at) {
  float values[64];
  for (int i = 0; i < 64; ++i) values[i] = out[i];
  for (int i = 0; i < 64; ++i) values[at[i] & 63] += values[at[i + 64] & 63];
  for (int i = 0; i < 64; ++i) out[i] = values[i];
}
// Too many live values for 1024 threads of a block.
__global__ void __launch_bounds__(1024) spilling_kernel(float* out, const float* in) {
  float values[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) values[i] = in[threadIdx.x * 96 + i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) out[threadIdx.x * 96 + i] = values[95 - i] * values[(i * 7) % 96];
}
__global__ void promoted_kernel(float* out) { out[threadIdx.x] = out[threadIdx.x] * 1.1 + 0.3; }
__global__ void good_kernel(float* out) { out[threadIdx.x] = out[threadIdx.x] * 1.1f + 0.3f; }
"""


def test_the_gate_can_fail(tmp_path):
    source = tmp_path / "bad.cu"
    source.write_text(BAD_KERNELS)
    cubin, report = compile_cubin(source, "90", tmp_path)
    found = {}
    for kernel in inspect(cubin, report).values():
        found[re.search(r"\d+(\w+?_kernel)", kernel.name)[1]] = " ".join(complaints(kernel, "90"))
    assert "stack" in found["indexed_kernel"]
    assert "local memory" in found["spilling_kernel"]
    assert "float64 instructions" in found["promoted_kernel"]
    assert found["good_kernel"] == ""
