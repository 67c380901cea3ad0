"""Kernels that break each rule of the AOT gates, compiled for the target of argv[1]; prints the violations as JSON."""

import json
import sys

import torch
import triton
import triton.language as tl
from strucfast.triton_kernels import _aot


@triton.jit
def spilling(x_ptr, y_ptr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    # 512 values a thread, all alive until the second pass over them.
    x = tl.load(x_ptr + index)
    tl.store(y_ptr + index, x - tl.sum(x, axis=0))


@triton.jit
def double_constant(x_ptr, y_ptr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index)
    tl.store(y_ptr + index, (x.to(tl.float64) * 1.1).to(tl.float32))


@triton.jit
def memory_hog(x_ptr, y_ptr, BLOCK: tl.constexpr):
    row = tl.arange(0, BLOCK)
    index = row[:, None] * BLOCK + row[None, :]
    # The transposition of a 256 x 256 tile goes through 256 KiB of shared memory.
    tl.store(y_ptr + index, tl.trans(tl.load(x_ptr + index)))


@triton.jit
def harmless(x_ptr, y_ptr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(y_ptr + index, tl.load(x_ptr + index) * 2.0)


def main() -> None:
    x = torch.empty(4, device="meta")
    found = {}
    # An AMD lane has 512 registers, twice as many as an NVIDIA thread, and a program there has twice the lanes.
    large = 16384 if sys.argv[1].startswith("sm_") else 65536
    for kernel, block, warps in (
        (spilling, large, 1),
        (double_constant, 128, 1),
        (memory_hog, 256, 16),
        (harmless, 128, 1),
    ):
        options = {"num_warps": warps, "num_stages": 2, "enable_fp_fusion": True}
        launched = {"kernel": kernel, "args": (x, x), "constants": {"BLOCK": block}, "options": options}
        candidate = _aot.variant(kernel.__name__, launched)
        try:
            found[kernel.__name__] = _aot.violations(candidate, sys.argv[1], _aot.compile_for(candidate, sys.argv[1]))
        except triton.runtime.errors.OutOfResources as error:
            found[kernel.__name__] = [str(error)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
