"""aggregate_log_density and kl_terms against all pairs' log-densities in one (B, B, D) tensor; memory at B = 8192."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import strucfast as sf
from benchmarks._passes import leaves, passes
from benchmarks.baselines import total_correlation

DATASET_SIZE = 737_280
# The compiled baseline's backward gives its buffers away and runs once, so the backward alone is not timed.
CASES = [(batch, dims, direction) for batch in (128, 512) for dims in (10, 20) for direction in ("forward", "both")]
# Eager takes 0.3 s a call: both directions together say enough.
CASES += [(2048, 10, "both"), (2048, 20, "both")]


def posteriors(batch, dims):
    """Samples of posteriors that overlap a little, as a trained VAE's do."""
    torch.manual_seed(0)
    mean, logvar = torch.randn(batch, dims), 0.5 * torch.randn(batch, dims) - 2.0
    return leaves(mean + torch.exp(0.5 * logvar) * torch.randn(batch, dims), mean, logvar)


@pytest.mark.parametrize("batch,dims,direction", CASES)
def test_aggregate_log_density(compare, batch, dims, direction):
    torch.compiler.reset()
    inputs = posteriors(batch, dims)
    weights = total_correlation.log_importance_weights(batch, DATASET_SIZE, torch.device("cpu"))
    eager = total_correlation.aggregate_densities
    compiled = torch.compile(eager, dynamic=False)

    def ours():
        q = sf.ops.aggregate_log_density(*inputs, dataset_size=DATASET_SIZE)
        return q.joint, q.marginal.sum(dim=1)

    for found, expected in zip(ours(), eager(*inputs, weights)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    providers = {
        "strucfast": passes(ours, inputs, direction),
        "eager": passes(lambda: eager(*inputs, weights), inputs, direction),
        "torch.compile": passes(lambda: compiled(*inputs, weights), inputs, direction),
    }
    compare("aggregate", f"B {batch}, D {dims}", direction, torch.float32, "contiguous", providers, seconds=1.0)


@pytest.mark.parametrize("batch", (128, 512))
def test_kl_terms(compare, batch):
    """The whole decomposition, with log q(z|x) and log p(z), as a beta-TCVAE's training step calls it."""
    torch.compiler.reset()
    inputs = posteriors(batch, 10)
    weights = total_correlation.log_importance_weights(batch, DATASET_SIZE, torch.device("cpu"))
    eager = total_correlation.kl_decomposition
    compiled = torch.compile(eager, dynamic=False)
    providers = {
        "strucfast": passes(lambda: sf.losses.kl_terms(*inputs, dataset_size=DATASET_SIZE)[:3], inputs, "both"),
        "eager": passes(lambda: eager(*inputs, weights), inputs, "both"),
        "torch.compile": passes(lambda: compiled(*inputs, weights), inputs, "both"),
    }
    compare("kl_terms", f"B {batch}, D 10", "both", torch.float32, "contiguous", providers, check=False, seconds=1.5)


# Writing 5 to clear_refs starts the kernel's record of the peak anew (Linux).
PEAK = """
import sys, torch, strucfast as sf

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

def step(batch, dims):
    inputs = [torch.randn(batch, dims, requires_grad=True) for _ in range(3)]
    q = sf.ops.aggregate_log_density(*inputs, dataset_size=737280)
    torch.autograd.grad(q.joint.sum() + q.marginal.sum(), inputs)

step(64, 20)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
step(8192, 20)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux' /proc")
def test_memory_of_a_large_batch():
    """Forward and backward at B = 8192, D = 20 add less than 200 MB to the process; one (B, B, D) tensor is 5.4 GB."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    print(f"{float(done.stdout):.0f} MB")
    assert 1 < float(done.stdout) < 200
