"""Densities and statistics on a GPU against eager and torch.compile, part of `make gpu-bench`.

Every case is first checked against the eager formulation; a case whose eager tensors do not fit is timed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import strucfast as sf
from benchmarks import _results, _timing
from benchmarks._passes import leaves, passes
from benchmarks.baselines import pairwise, total_correlation
from benchmarks.baselines.lp_nested import isa_log_prob

DATASET_SIZE = 737_280
ISA_SIZES = (4, 4, 4, 4, 4)
IMQ_WIDTHS = (0.2, 0.4, 1.0, 2.0, 4.0, 10.0)
# With 1 the aggregate densities cancel out of the gradient.
BETA = 6.0


@dataclass(frozen=True)
class Case:
    """One op at one size. ``bytes_of_eager``: roughly what eager's forward and backward hold at once."""

    op: str
    name: str
    inputs: list[torch.Tensor]
    ours: Callable[[], object]
    eager: Callable[[], object]
    exps_forward: int
    bytes_of_eager: int
    tolerance: float


def posteriors(batch: int, dims: int, device: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    mean, logvar = torch.randn(batch, dims, device=device), 0.5 * torch.randn(batch, dims, device=device) - 2.0
    return leaves(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean), mean, logvar)


def aggregate(batch: int, dims: int, device: str) -> Case:
    inputs = posteriors(batch, dims, device)

    def ours():
        q = sf.ops.aggregate_log_density(*inputs, dataset_size=DATASET_SIZE)
        return q.joint, q.marginal.sum(dim=1)

    def eager():
        weights = total_correlation.log_importance_weights(batch, DATASET_SIZE, torch.device(device))
        return total_correlation.aggregate_densities(*inputs, weights)

    return Case("aggregate", f"B {batch}, D {dims}", inputs, ours, eager, batch**2 * (dims + 1), *_pairs(batch, dims))


def kl_terms(batch: int, dims: int, device: str) -> Case:
    inputs = posteriors(batch, dims, device)
    beta = torch.tensor([1.0, BETA, 1.0], device=device)

    def ours():
        return (torch.stack(sf.losses.kl_terms(*inputs, dataset_size=DATASET_SIZE)[:3]) * beta).sum()

    def eager():
        weights = total_correlation.log_importance_weights(batch, DATASET_SIZE, torch.device(device))
        return (torch.stack(total_correlation.kl_decomposition(*inputs, weights)) * beta).sum()

    return Case("kl_terms", f"B {batch}, D {dims}", inputs, ours, eager, batch**2 * (dims + 1), *_pairs(batch, dims))


def lp_nested(points: int, device: str) -> Case:
    torch.manual_seed(0)
    z = torch.randn(points, sum(ISA_SIZES), device=device)
    parameters = (torch.tensor(2.1), torch.full((len(ISA_SIZES),), 2.2), torch.tensor(2.09312))
    inputs = leaves(z, *(t.to(device) for t in parameters))

    def call(function):
        return function(inputs[0], ISA_SIZES, *inputs[1:])

    return Case(
        "lp_nested_log_prob",
        f"{points} x (5 x 4)",
        inputs,
        lambda: call(sf.ops.lp_nested_log_prob),
        lambda: call(isa_log_prob),
        points * (z.shape[1] + len(ISA_SIZES) + 1),
        40 * z.nbytes,
        1e-3,
    )


def mmd(count: int, dims: int, device: str) -> Case:
    inputs = _points(count, dims, device)
    width = dims**0.5
    return Case(
        "mmd",
        f"rbf, N = M = {count}, D {dims}",
        inputs,
        lambda: sf.ops.mmd(*inputs, bandwidth=width),
        lambda: pairwise.mmd_rbf(*inputs, width, pairwise.squares_from_products),
        count * (2 * count - 1),
        20 * 4 * count**2,
        1e-5,
    )


def mmd_dimwise(count: int, dims: int, device: str) -> Case:
    inputs = _points(count, dims, device)
    return Case(
        "mmd_dimwise",
        f"6 imq, N = M = {count}, D {dims}",
        inputs,
        lambda: sf.ops.mmd_dimwise(*inputs),
        lambda: pairwise.mmd_imq_dimwise(*inputs, IMQ_WIDTHS),
        0,
        60 * 4 * count**2 * dims,
        1e-4,
    )


def hsic(count: int, dims: int, device: str) -> Case:
    inputs = _points(count, dims, device)
    return Case(
        "hsic",
        f"rbf, N {count}, D = E = {dims}",
        inputs,
        lambda: sf.ops.hsic(*inputs, bandwidth_x=2.0, bandwidth_y=2.0),
        lambda: pairwise.hsic_rbf(*inputs, 2.0),
        count * (count - 1),
        20 * 4 * count**2 * dims,
        1e-5,
    )


def _points(count: int, dims: int, device: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return leaves(torch.randn(count, dims, device=device), torch.randn(count, dims, device=device))


def _pairs(batch: int, dims: int) -> tuple[int, float]:
    """Eager holds some eight (B, B, D) tensors for its backward; its sums over B terms are as exact as that."""
    return 8 * 4 * batch * batch * dims, 1e-3


def cases(device: str = "cuda") -> Iterator[tuple[str, Callable[[], Case]]]:
    """(name, maker) of every case, the sizes that papers use first."""
    for batch in (128, 2048, 8192):
        yield f"kl_terms {batch}", lambda b=batch: kl_terms(b, 10, device)
    for batch in (2048, 4096, 8192, 16384):
        yield f"aggregate {batch}", lambda b=batch: aggregate(b, 10, device)
    for points in (2048, 65536, 1048576):
        yield f"lp_nested {points}", lambda n=points: lp_nested(n, device)
    for count in (128, 1024, 8192):
        yield f"mmd {count}", lambda n=count: mmd(n, 10, device)
    for count in (128, 512):
        yield f"mmd_dimwise {count}", lambda n=count: mmd_dimwise(n, 10, device)
    for count in (128, 1024):
        yield f"hsic {count}", lambda n=count: hsic(n, 10, device)


def measure(case: Case, device: str, *, exps_per_s: float = 0.0, compiled: bool = True) -> list[dict]:
    """Rows of results of a case, forward and both; prints a line for each.

    ``exps_per_s``: what the card can evaluate, 0 where that is not known.

    Raises:
        RuntimeError: our values are not eager's.
    """
    functions = {"strucfast": case.ours}
    if not device.startswith("cuda") or case.bytes_of_eager < 0.5 * torch.cuda.mem_get_info()[0]:
        functions["eager"] = case.eager
        _check(case)
        if compiled:
            torch.compiler.reset()
            functions["torch.compile"] = torch.compile(case.eager, dynamic=False)
    rows = []
    for direction in ("forward", "both"):
        providers = {name: passes(function, case.inputs, direction) for name, function in functions.items()}
        stats = _timing.compare(providers, device=device, seconds=1.0)
        found = _results.rows_of(case.op, case.name, direction, torch.float32, "contiguous", stats)
        milliseconds = stats["strucfast"].median_ms
        exps = case.exps_forward * (1 if direction == "forward" else 2)
        rate = exps / (milliseconds * 1e-3)
        note = ""
        if exps and exps_per_s:
            found[0] |= {"gexp_per_s": round(rate / 1e9, 3), "share_of_exp": round(rate / exps_per_s, 4)}
            note = f"  {rate / 1e12:.2f}e12 exp/s of {exps_per_s / 1e12:.2f}e12"
        ratios = "  ".join(f"{n} {s.median_ms / milliseconds:.2f}x" for n, s in stats.items() if n != "strucfast")
        print(f"{case.op} {case.name} {direction:<8} {milliseconds * 1e3:9.1f} us{note}  {ratios}", flush=True)
        rows += found
    return rows


def _check(case: Case) -> None:
    with torch.no_grad():
        found, expected = ([o] if isinstance(o, torch.Tensor) else list(o) for o in (case.ours(), case.eager()))
    for ours, theirs in zip(found, expected, strict=True):
        difference = (ours - theirs).abs().max().item()
        if not difference <= case.tolerance * max(1.0, theirs.abs().max().item()):
            raise RuntimeError(f"no figures for {case.op} {case.name}: {difference} off the eager formulation")
