"""How cost grows: over the batch (32 to 16384), latent variables (4 to 64), channels (32 to 256), samples (1e3 to 1e6).

Every test is one point of a series; benchmarks/_scaling.py turns them into slopes and into the sizes from which ours
wins. By default the first, a middle and a last point, a short time each, against eager. STRUCFAST_FULL=1 times every
size, adds torch.compile and takes the metrics to 1e6 samples (exact DCI to 1e5); that takes about half an hour.

Eager stops where one tensor of all pairs would take gigabytes: at batch 8192, D 10, one (B, B, D) tensor is 2.7 GB and
15 GB are alive in its backward. Rows of "both" carry the bytes that one call allocates, ours and eager's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import strucfast as sf
from benchmarks import _timing, bench_adain, bench_group_norm_modulate, bench_modulate
from benchmarks._passes import agree, leaves, passes
from benchmarks.baselines import explicitness as explicitness_baseline
from benchmarks.baselines import mig as mig_baseline
from benchmarks.baselines import pairwise, total_correlation
from benchmarks.baselines.lp_nested import isa_log_prob
from benchmarks.baselines.str_tfm import LoopStrTfm, bmm_str_tfm
from strucfast import _native

DATASET_SIZE = 737_280
WIDTHS = (0.2, 0.4, 1.0, 2.0, 4.0, 10.0)
HIDDEN = (64, 64, 64)
TEST_SAMPLES = 5_000

# What a provider calls, and the tensors it is differentiated by; None for functions of arrays.
Provider = tuple[Callable[[], object], list[torch.Tensor] | None]


@dataclass(frozen=True)
class Growth:
    """One series: ``problem(value)`` gives the providers at a size, ``quick`` are the sizes of the default tier."""

    op: str
    axis: str
    fixed: str
    problem: Callable[[int], dict[str, Provider]]
    values: tuple[int, ...]
    quick: tuple[int, ...]
    directions: tuple[str, ...] = ("forward", "both")
    # provider -> the largest size at which it is timed; torch.compile stops with eager.
    limits: Mapping[str, int] = field(default_factory=dict)
    # What torch.compile compiles.
    compiled: str = "eager"


def aggregate(batch: int, dims: int) -> dict[str, Provider]:
    mean, logvar = torch.randn(batch, dims), 0.5 * torch.randn(batch, dims) - 2.0
    inputs = leaves(mean + torch.exp(0.5 * logvar) * torch.randn(batch, dims), mean, logvar)
    # None where eager is not timed: the (B, B) weights of the largest batch take a gigabyte.
    timed = batch <= PAIRS["limits"]["eager"]
    weights = total_correlation.log_importance_weights(batch, DATASET_SIZE, torch.device("cpu")) if timed else None

    def ours():
        q = sf.ops.aggregate_log_density(*inputs, dataset_size=DATASET_SIZE)
        return q.joint, q.marginal.sum(dim=1)

    return {
        "strucfast": (ours, inputs),
        "eager": (lambda: total_correlation.aggregate_densities(*inputs, weights), inputs),
    }


def mmd(points: int) -> dict[str, Provider]:
    inputs = leaves(torch.randn(points, 10), torch.randn(points, 10))
    width = 5**0.5
    return {
        "strucfast": (lambda: sf.ops.mmd(*inputs, bandwidth=width), inputs),
        "eager": (lambda: pairwise.mmd_rbf(*inputs, width, pairwise.squares_from_differences), inputs),
    }


def mmd_dimwise(dims: int) -> dict[str, Provider]:
    inputs = leaves(torch.randn(256, dims), torch.randn(256, dims))
    return {
        "strucfast": (lambda: sf.ops.mmd_dimwise(*inputs), inputs),
        "eager": (lambda: pairwise.mmd_imq_dimwise(*inputs, WIDTHS), inputs),
    }


def hsic(points: int) -> dict[str, Provider]:
    inputs = leaves(torch.randn(points, 10), torch.randn(points, 10))
    return {
        "strucfast": (lambda: sf.ops.hsic(*inputs, bandwidth_x=2.0, bandwidth_y=2.0), inputs),
        "eager": (lambda: pairwise.hsic_rbf(*inputs, 2.0), inputs),
    }


def lp_nested(points: int, dims: int) -> dict[str, Provider]:
    """The ISA prior: subspaces of four."""
    sizes = (4,) * (dims // 4)
    inputs = leaves(torch.randn(points, dims), torch.tensor(2.1), torch.full((len(sizes),), 2.2), torch.tensor(2.09))
    z, *parameters = inputs
    return {
        "strucfast": (lambda: sf.ops.lp_nested_log_prob(z, sizes, *parameters), inputs),
        "eager": (lambda: isa_log_prob(z, sizes, *parameters), inputs),
    }


def str_tfm(batch: int, variables: int, channels: int) -> dict[str, Provider]:
    loop = LoopStrTfm(variables, (1, *HIDDEN, 2 * channels))
    weights, biases = loop.stacked()
    (u,) = leaves(torch.randn(batch, variables, 1))
    weights, biases = leaves(*weights), leaves(*biases)
    stacked = [u, *weights, *biases]
    return {
        "strucfast": (lambda: sf.ops.str_tfm(u, weights, biases), stacked),
        "eager": (lambda: loop(u), [u, *loop.parameters()]),
        "bmm": (lambda: [t.transpose(0, 1) for t in bmm_str_tfm(u, weights, biases)], stacked),
    }


def images(batch: int, channels: int, size: int) -> list[torch.Tensor]:
    return leaves(torch.randn(batch, channels, size, size), *(torch.randn(batch, channels) for _ in range(2)))


def modulate(*shape: int) -> dict[str, Provider]:
    inputs = images(*shape)
    return {
        "strucfast": (lambda: sf.ops.modulate(*inputs), inputs),
        "eager": (lambda: bench_modulate.eager(*inputs), inputs),
    }


def group_norm_modulate(*shape: int) -> dict[str, Provider]:
    x, *affine = images(*shape)
    inputs = [x, *leaves(torch.randn(shape[1]), torch.randn(shape[1])), *affine]
    return {
        "strucfast": (lambda: bench_group_norm_modulate.fused(*inputs), inputs),
        "eager": (lambda: bench_group_norm_modulate.eager(*inputs), inputs),
    }


def adain(*shape: int) -> dict[str, Provider]:
    inputs = images(*shape)
    return {
        "strucfast": (lambda: sf.ops.adain(*inputs, eps=bench_adain.EPS), inputs),
        "eager": (lambda: bench_adain.eager(*inputs), inputs),
    }


def codes_and_factors(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Twelve linear codes with noise, float32, and Shapes3D's six factors."""
    rng = np.random.default_rng(0)
    factors = sf.data.Shapes3D().factors(rng.integers(480_000, size=samples))
    codes = factors @ rng.normal(size=(6, 12)) + rng.normal(size=(samples, 12))
    return codes.astype(np.float32), factors


def mig(samples: int) -> dict[str, Provider]:
    codes, factors = codes_and_factors(samples)
    wide = codes.astype(np.float64)
    return {
        "strucfast": (lambda: sf.metrics.mig(codes, factors), None),
        "disentanglement_lib": (lambda: mig_baseline.mig(wide, factors), None),
    }


def split(samples: int) -> tuple[np.ndarray, ...]:
    codes, factors = codes_and_factors(samples + TEST_SAMPLES)
    return codes[:samples], factors[:samples], codes[samples:], factors[samples:]


def dci(samples: int) -> dict[str, Provider]:
    arrays = split(samples)
    return {
        "strucfast": (lambda: sf.metrics.dci(*arrays, bins=256), None),
        "strucfast, exact": (lambda: sf.metrics.dci(*arrays), None),
    }


def explicitness(samples: int) -> dict[str, Provider]:
    arrays = split(samples)
    return {
        "strucfast": (lambda: sf.metrics.explicitness(*arrays), None),
        "scikit-learn, one BLAS thread": (lambda: explicitness_baseline.explicitness_one_blas_thread(*arrays), None),
    }


def render(dataset: type, samples: int) -> dict[str, Provider]:
    ds = dataset(image_size=32)
    rows = np.random.default_rng(0).integers(len(ds), size=samples)
    out = np.zeros((samples, *ds.image_shape), np.uint8)
    return {"strucfast": (lambda: ds.images(rows, out=out), None)}


BATCH, FEW_BATCH = (32, 128, 512, 2048, 8192, 16384), (32, 512, 8192)
LATENT, FEW_LATENT = (4, 8, 16, 32, 64), (4, 16, 64)
CHANNELS, FEW_CHANNELS = (32, 64, 128, 256), (32, 128, 256)
SAMPLES, FEW_SAMPLES = (1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000, 100_000)


def over_batch(op, fixed, problem, quick=FEW_BATCH, **options) -> Growth:
    return Growth(op, "batch", fixed, problem, BATCH, quick, **options)


def over_latent(op, fixed, problem, **options) -> Growth:
    return Growth(op, "latent", fixed, problem, LATENT, FEW_LATENT, **options)


def over_channels(op, fixed, problem, **options) -> Growth:
    return Growth(op, "channels", fixed, problem, CHANNELS, FEW_CHANNELS, **options)


def over_samples(op, fixed, problem, quick=FEW_SAMPLES, **options) -> Growth:
    return Growth(op, "samples", fixed, problem, SAMPLES, quick, directions=("forward",), **options)


PAIRS = {"limits": {"eager": 2048}}
BANK = {"compiled": "bmm"}
# The default tier has these at 10,000 samples in files of their own.
SLOW = 100_000 if _timing.full() else 1_000
PEERS = {"limits": {"scikit-learn, one BLAS thread": SLOW, "disentanglement_lib": SLOW, "strucfast, exact": SLOW}}

SERIES = (
    over_batch("aggregate", "D 10", lambda n: aggregate(n, 10), **PAIRS),
    over_batch("mmd", "rbf, D 10", mmd, **PAIRS),
    over_batch("hsic", "rbf, D 10", hsic, **PAIRS),
    over_batch("str_tfm", "12 x 1-64-64-64-128", lambda n: str_tfm(n, 12, 64), **BANK),
    over_batch("lp_nested_log_prob", "5 x 4", lambda n: lp_nested(n, 20)),
    over_batch("modulate", "64 channels, 8x8", lambda n: modulate(n, 64, 8)),
    over_batch("group_norm_modulate", "64 channels, 8x8", lambda n: group_norm_modulate(n, 64, 8)),
    over_latent("aggregate", "B 512", lambda d: aggregate(512, d)),
    over_latent("mmd_dimwise", "6 imq, N = M = 256", mmd_dimwise),
    over_latent("lp_nested_log_prob", "2048 points, subspaces of 4", lambda d: lp_nested(2048, d)),
    over_latent("str_tfm", "1-64-64-64-128 each, N 128", lambda d: str_tfm(128, d, 64), **BANK),
    over_channels("modulate", "N 128, 16x16", lambda c: modulate(128, c, 16)),
    over_channels("group_norm_modulate", "N 128, 16x16", lambda c: group_norm_modulate(128, c, 16)),
    over_channels("adain", "N 128, 16x16", lambda c: adain(128, c, 16)),
    over_channels("str_tfm", "12 variables, N 128", lambda c: str_tfm(128, 12, c), **BANK),
    Growth("lp_nested_log_prob", "samples", "5 x 4", lambda n: lp_nested(n, 20), SAMPLES, (1_000, 10_000, 1_000_000)),
    over_samples("mig", "12 codes", mig, **PEERS),
    over_samples("dci", "12 codes, 256 bins", dci, quick=(1_000, 10_000), **PEERS),
    over_samples("explicitness", "12 codes", explicitness, **PEERS),
    over_samples("render_shapes3d", "32x32x3", lambda n: render(sf.data.Shapes3D, n)),
    over_samples("render_dsprites", "32x32x1", lambda n: render(sf.data.DSprites, n)),
)


def compiles(series: Growth, value: int) -> bool:
    """Whether torch.compile is timed there: in the full tier, as far as eager goes."""
    return _timing.full() and "both" in series.directions and value <= series.limits.get("eager", value)


def points() -> list:
    """One parameter a test: series, value, direction."""
    return [
        pytest.param(
            series,
            value,
            direction,
            id=f"{series.op}-{series.axis}-{value}-{direction}",
            marks=[pytest.mark.compiles] if compiles(series, value) else [],
        )
        for series in SERIES
        for direction in series.directions
        for value in (series.values if _timing.full() else series.quick)
    ]


@pytest.mark.parametrize("series,value,direction", points())
def test_growth(compare, series, value, direction):
    torch.manual_seed(0)
    _native.host()
    providers = {
        name: provider for name, provider in series.problem(value).items() if value <= series.limits.get(name, value)
    }
    if compiles(series, value):
        torch.compiler.reset()
        call, inputs = providers[series.compiled]
        providers["torch.compile"] = (torch.compile(call, dynamic=False), inputs)
    timed = {
        name: call if inputs is None else passes(call, inputs, direction) for name, (call, inputs) in providers.items()
    }
    if "eager" in providers and value == series.values[0]:
        calls = {name: call for name, (call, _) in providers.items()}
        if series.op == "str_tfm":
            loop = calls["eager"]
            calls["eager"] = lambda: LoopStrTfm.together(loop())
        agree(calls, direction, rtol=1e-3, atol=1e-3)
    layout = "channels_last" if series.op.startswith("render") else "contiguous"
    dtype = torch.uint8 if series.op.startswith("render") else torch.float32
    compare(
        series.op, f"{series.axis} {value}, {series.fixed}", direction, dtype, layout, timed,
        seconds=2.0 if _timing.full() else 0.2, axis=(series.axis, value),
    )  # fmt: skip
