"""aggregate_log_density and kl_terms against all pairs' log-densities in one (B, B, D) tensor; memory at B = 8192.

"pythae" is the loss function of its BetaTCVAE. By default torch.compile is measured at D = 10 alone, as each of its
graphs takes seconds, and B = 2048, where eager takes 0.3 s a call, in one direction; STRUCFAST_FULL=1 times every size
in every direction with every provider.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import strucfast as sf
from benchmarks import _peers, _precompile, _timing
from benchmarks._passes import DIRECTIONS, leaves, passes, per_direction
from benchmarks.baselines import pythae_losses, total_correlation

DATASET_SIZE = 737_280
# The weight of the total correlation: with 1 the densities of the aggregate posterior cancel out of the gradient, and a
# backward that notices has nothing to do.
BETA = 6.0
ALL = [(batch, dims, direction) for batch in (128, 512, 2048) for dims in (10, 20) for direction in DIRECTIONS]
AGGREGATE = [(batch, dims, way) for batch in (128, 512) for dims in (10, 20) for way in ("forward", "both")]
AGGREGATE += [(2048, 10, "both")]
KL_TERMS = [(128, dims, direction) for dims in (10, 20) for direction in DIRECTIONS]
KL_TERMS += [(512, 10, direction) for direction in DIRECTIONS]
KL_TERMS += [(512, 20, "both"), (2048, 10, "both"), (2048, 20, "both")]


def is_compiled(batch, dims, direction):
    """By default one graph per op and batch, and one more that has no backward."""
    return _timing.full() or (dims == 10 and (direction == "both" or (direction == "forward" and batch == 128)))


def posteriors(batch, dims):
    """Samples of posteriors that overlap a little, as a trained VAE's do."""
    torch.manual_seed(0)
    mean, logvar = torch.randn(batch, dims), 0.5 * torch.randn(batch, dims) - 2.0
    return leaves(mean + torch.exp(0.5 * logvar) * torch.randn(batch, dims), mean, logvar)


def exps(batch, dims, direction):
    """One a pair and dim, one a pair for the joint density; the backward takes them again, as nothing is kept."""
    once = batch * batch * (dims + 1)
    return per_direction(direction, once, once)


@pytest.mark.compiles
@pytest.mark.parametrize("batch,dims,direction", ALL if _timing.full() else AGGREGATE)
def test_aggregate_log_density(compare, batch, dims, direction):
    torch.compiler.reset()
    inputs = posteriors(batch, dims)
    weights = total_correlation.log_importance_weights(batch, DATASET_SIZE, torch.device("cpu"))
    eager = total_correlation.aggregate_densities

    def ours():
        q = sf.ops.aggregate_log_density(*inputs, dataset_size=DATASET_SIZE)
        return q.joint, q.marginal.sum(dim=1)

    if not _precompile.is_child():
        for found, expected in zip(ours(), eager(*inputs, weights)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    providers = {
        "strucfast": passes(ours, inputs, direction),
        "eager": passes(lambda: eager(*inputs, weights), inputs, direction),
    }
    if is_compiled(batch, dims, direction):
        compiled = torch.compile(eager, dynamic=False)
        providers["torch.compile"] = passes(lambda: compiled(*inputs, weights), inputs, direction)
    compare(
        "aggregate", f"B {batch}, D {dims}", direction, torch.float32, "contiguous", providers, seconds=0.6,
        exps=exps(batch, dims, direction),
    )  # fmt: skip


@pytest.mark.compiles
@pytest.mark.parametrize("batch,dims,direction", ALL if _timing.full() else KL_TERMS)
def test_kl_terms(compare, batch, dims, direction):
    """The regulariser of a beta-TCVAE's training step: the whole decomposition, weighted, as one number."""
    torch.compiler.reset()
    inputs = posteriors(batch, dims)
    weights = total_correlation.log_importance_weights(batch, DATASET_SIZE, torch.device("cpu"))

    def weighted(terms):
        return terms[0] + BETA * terms[1] + terms[2]

    def ours(estimator="mss"):
        return weighted(sf.losses.kl_terms(*inputs, dataset_size=DATASET_SIZE, estimator=estimator))

    def eager():
        return weighted(total_correlation.kl_decomposition(*inputs, weights))

    providers = {name: passes(call, inputs, direction) for name, call in (("strucfast", ours), ("eager", eager))}
    if is_compiled(batch, dims, direction):
        compiled = torch.compile(eager, dynamic=False)
        providers["torch.compile"] = passes(compiled, inputs, direction)
    if not _precompile.is_child():
        torch.testing.assert_close(ours(), eager(), rtol=1e-4, atol=1e-3)
        if (batch < 2048 or _timing.full()) and _peers.find("pythae.models"):
            # Its stratified weights are others than ours, so that the values agree under the other estimator alone.
            pythae = pythae_losses.beta_tcvae(dims, beta=BETA)
            by_weights = pythae_losses.beta_tcvae(dims, beta=BETA, use_mss=False)
            torch.testing.assert_close(by_weights(*inputs, DATASET_SIZE), ours("mws"), rtol=1e-4, atol=1e-3)
            providers["pythae"] = passes(lambda: pythae(*inputs, DATASET_SIZE), inputs, direction)
    compare(
        "kl_terms", f"B {batch}, D {dims}", direction, torch.float32, "contiguous", providers, seconds=0.6,
        exps=exps(batch, dims, direction),
    )  # fmt: skip


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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc: run this on Linux")
def test_memory_of_a_large_batch():
    """Forward and backward at B = 8192, D = 20 add less than 200 MB to the process; one (B, B, D) tensor is 5.4 GB."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    print(f"{float(done.stdout):.0f} MB")
    assert 1 < float(done.stdout) < 200
