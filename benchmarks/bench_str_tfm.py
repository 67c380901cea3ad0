"""str_tfm against a loop of MLP modules (how structural decoders are written) and against batched products.

Only STRUCFAST_FULL=1 compiles the batched products (torch.compile) for every case; by default for the SAE's and the
widest.
"""

from itertools import pairwise

import pytest
import torch

import strucfast as sf
from benchmarks import _timing
from benchmarks._passes import DIRECTIONS, agree, bytes_of, leaves, passes, per_direction
from benchmarks.baselines.str_tfm import LoopStrTfm, bmm_str_tfm

CASES = {
    "12 x 1-64-64-64-128, N 32": (32, 12, (1, 64, 64, 64, 128)),
    "12 x 1-64-64-64-128, N 128": (128, 12, (1, 64, 64, 64, 128)),
    "12 x 1-64-128-128, N 128": (128, 12, (1, 64, 128, 128)),
    "3 x 4-64-64-64-128, N 128": (128, 3, (4, 64, 64, 64, 128)),
    "16 x 2-64-128-256-256, N 32": (32, 16, (2, 64, 128, 256, 256)),
}
COMPILED = ("12 x 1-64-64-64-128, N 128", "16 x 2-64-128-256-256, N 32")


def transposed(pair):
    """Scale, shift (d, N, C) as ours returns them, (N, d, C)."""
    return [t.transpose(0, 1) for t in pair]


@pytest.mark.compiles
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES)
def test_str_tfm(compare, case, direction):
    torch.manual_seed(0)
    torch.compiler.reset()
    n, d, widths = CASES[case]
    loop = LoopStrTfm(d, widths)
    weights, biases = loop.stacked()
    (u,) = leaves(torch.randn(n, d, widths[0]))
    weights, biases = leaves(*weights), leaves(*biases)
    stacked, looped = [u, *weights, *biases], [u, *loop.parameters()]
    providers = {
        "strucfast": passes(lambda: sf.ops.str_tfm(u, weights, biases), stacked, direction),
        "eager": passes(lambda: loop(u), looped, direction),
        "bmm": passes(lambda: bmm_str_tfm(u, weights, biases), stacked, direction),
    }
    if _timing.full() or case in COMPILED:
        compiled = torch.compile(bmm_str_tfm, dynamic=False)
        providers["torch.compile"] = passes(lambda: compiled(u, weights, biases), stacked, direction)
    calls = {
        "strucfast": lambda: sf.ops.str_tfm(u, weights, biases),
        "eager": lambda: loop.together(loop(u)),
        "bmm": lambda: transposed(bmm_str_tfm(u, weights, biases)),
    }
    if "torch.compile" in providers:
        calls["torch.compile"] = lambda: transposed(compiled(u, weights, biases))
    agree(calls, direction, rtol=1e-4, atol=1e-4)
    outputs = 4 * n * d * widths[-1]
    moved = per_direction(direction, bytes_of(*stacked) + outputs, 2 * bytes_of(*stacked) + outputs)
    # One of each Mish and of each scale.
    once = n * d * (sum(widths[1:-1]) + widths[-1] // 2)
    flops = 2 * n * d * sum(a * b for a, b in pairwise(widths))
    # Each product of the forward is followed by two of its size in the backward.
    flops = per_direction(direction, flops, 2 * flops)
    stats = compare(
        "str_tfm",
        case,
        direction,
        u.dtype,
        "contiguous",
        providers,
        moved=moved,
        exps=per_direction(direction, once, once),
    )
    print(f"\n{case} {direction}: {flops / stats['strucfast'].median_ms / 1e6:.0f} GFLOP/s")
