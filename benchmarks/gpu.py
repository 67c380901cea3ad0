"""What `make gpu` runs: build the CUDA half for the card that is here, test it, measure it, train on it.

    python benchmarks/gpu.py build|test|bench|train

Each part ends within nine minutes, downloads nothing, and adds to <results>/<device>.json as it goes, so a part that
fails or is cut short leaves what was measured. Without a GPU every part says so and exits with status 2.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# The folder of this script holds modules, not packages: `benchmarks.` names must not resolve to it.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT / "benchmarks"]

import torch  # noqa: E402

from benchmarks import _in_tree, _results, _timing  # noqa: E402, F401

PART_SECONDS = 520
SIZES = (4, 8, 16, 32, 64)
GROUPS = 8
DTYPES = (torch.float32, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last")
STACKS = {
    "12 x 1-64-64-64-128, N 128": (128, 12, (1, 64, 64, 64, 128)),
    "12 x 1-64-64-64-128, N 1024": (1024, 12, (1, 64, 64, 64, 128)),
}


class Clock:
    """The time left to a part."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


def require_gpu() -> str:
    """The card's compute capability as nvcc wants it ("90")."""
    if torch.version.cuda is None:
        raise SystemExit(
            "make gpu: no GPU run: this torch is a build without CUDA; set PYTHON= to an interpreter with one"
        )
    if not torch.cuda.is_available():
        raise SystemExit("make gpu: no GPU run: torch sees no CUDA device")
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}"


def save(rows: list[dict], **about) -> None:
    """Merge figures, and facts about the machine, into the device's result file."""
    path = _results.results_path("cuda")
    known = json.loads(path.read_text()).get("meta", {}) if path.exists() else {}
    fresh = {k: v for k, v in _results.meta("cuda", "caching").items() if v is not None}
    _results.record(path, known | fresh | about, rows)


# build


def build(clock: Clock) -> int:
    environment = {**os.environ, "STRUCFAST_CUDA": "1", "STRUCFAST_CUDA_ARCHS": require_gpu()}
    start = time.monotonic()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    code = subprocess.run(command, cwd=ROOT, env=environment, timeout=clock.left()).returncode
    if code == 0:
        save([], build_seconds=round(time.monotonic() - start, 1), built_for=f"sm_{require_gpu()}")
    return code


# test


def test(clock: Clock) -> int:
    """The op contract and the golden values on the GPU, and every test marked gpu."""
    marked = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text()]
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    code = 0
    for chosen in (
        [*map(str, marked), "-m", "gpu"],
        ["tests/ops/test_contract.py", "tests/ops/test_golden_modulation.py", "-k", "cuda and not capture"],
    ):
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks._in_tree", "-p", "no:cacheprovider"]
            try:
                done = subprocess.run(
                    [*command, f"--junitxml={report}", *chosen], cwd=ROOT, timeout=max(5, clock.left())
                )
                code = code or done.returncode
            except subprocess.TimeoutExpired:
                print(f"gpu-test: cut short, no time left for {chosen}", flush=True)
                code = 1
            if report.exists():
                suite = next(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
                counts = {name: counts[name] + int(suite.get(name, 0)) for name in counts}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    save([], gpu_tests=counts | {"passed": passed})
    print(f"gpu-test: {passed} passed, {counts['failures'] + counts['errors']} failed, {counts['skipped']} skipped")
    return code or (0 if passed > 0 else 1)


# bench


@dataclass(frozen=True)
class Case:
    """One op on one shape: inputs, and the raw calls of each backend."""

    op: str
    size: int
    dtype: torch.dtype
    layout: str

    @property
    def name(self) -> str:
        return f"(128,64,{self.size},{self.size})"

    def tensors(self) -> list[torch.Tensor]:
        """x, upstream gradient, scale, shift, and for the norm weight and bias."""
        x, grad = (torch.randn(128, 64, self.size, self.size, device="cuda").to(self.dtype) for _ in range(2))
        if self.layout == "channels_last":
            x, grad = (t.to(memory_format=torch.channels_last) for t in (x, grad))
        per_channel = [torch.randn(128, 64, device="cuda").to(self.dtype) for _ in range(2)]
        grouped = self.op == "group_norm_modulate"
        own = [torch.randn(64, device="cuda").to(self.dtype) for _ in range(2)] if grouped else []
        return [x, grad, *per_channel, *own]

    def calls(self, kernels, tensors: list[torch.Tensor]) -> dict[str, Callable[[], object]]:
        """Forward and backward kernels without autograd around them."""
        x, grad, scale, shift, *own = tensors
        if self.op == "modulate":
            return {
                "forward": lambda: kernels.forward(x, scale, shift),
                "backward": lambda: kernels.backward(grad, x, scale, False, 7),
            }
        if self.op == "adain":
            _, statistics = kernels.forward(x, scale, shift, 1e-5)
            return {
                "forward": lambda: kernels.forward(x, scale, shift, 1e-5),
                "backward": lambda: kernels.backward(grad, x, statistics, scale, False, 7),
            }
        rest = (GROUPS, *own, scale, shift, 1)
        _, mean, rstd = kernels.forward(x, *rest, 1e-5)
        return {
            "forward": lambda: kernels.forward(x, *rest, 1e-5),
            "backward": lambda: kernels.backward(grad, x, mean, rstd, *rest, 31),
        }

    def bytes(self, direction: str) -> int:
        """Each input read once, each output written once."""
        element = torch.empty(0, dtype=self.dtype).element_size()
        pixels, channels = 128 * 64 * self.size**2, 128 * 64
        statistics = {"modulate": 0, "group_norm_modulate": 2 * 128 * GROUPS, "adain": 2 * channels}[self.op]
        own = 64 * (self.op == "group_norm_modulate")
        if direction == "forward":
            return element * (2 * pixels + 2 * channels + 2 * own) + 4 * statistics
        return element * (3 * pixels + 3 * channels + 4 * own) + 4 * statistics

    def public(self) -> tuple[Callable, Callable]:
        """The op as users call it, and as eager code writes it: functions of (x, scale, shift, weight, bias)."""
        import torch.nn.functional as F

        import strucfast as sf

        if self.op == "modulate":
            return sf.ops.modulate, lambda x, a, b: x * a[..., None, None] + b[..., None, None]

        if self.op == "adain":

            def plain(x, a, b):
                std = torch.sqrt(x.var((2, 3), unbiased=False, keepdim=True) + 1e-5)
                return a[..., None, None] * ((x - x.mean((2, 3), keepdim=True)) / std) + b[..., None, None]

            return sf.ops.adain, plain

        def fused(x, a, b, w, c):
            return sf.ops.group_norm_modulate(x, GROUPS, w, c, a, b)

        def eager(x, a, b, w, c):
            return F.mish(F.group_norm(x, GROUPS, w, c)) * a[..., None, None] + b[..., None, None]

        return fused, eager


def cases() -> Iterator[Case]:
    for size in reversed(SIZES):
        for op in ("modulate", "group_norm_modulate", "adain"):
            for dtype in DTYPES:
                for layout in LAYOUTS:
                    yield Case(op, size, dtype, layout)


def cold(calls: list[Callable[[], object]], repeats: int = 15) -> _timing.Stats:
    """Time of one call, from CUDA graphs of all ``calls`` in a row.

    Each call has tensors of its own, together several times the L2 cache, so none finds its operands there; the graph
    keeps the cost of launching from Python out of the figure.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    kept = []
    with torch.cuda.graph(graph):
        for call in calls:
            kept.append(call())
    times = []
    for turn in range(repeats + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if turn >= 3:
            times.append(begin.elapsed_time(end) / len(calls))
    times.sort()
    return _timing.Stats(statistics.median(times), times[len(times) // 5], times[-1 - len(times) // 5])


def copy_bandwidth() -> float:
    """Bytes per second of a device-to-device copy, counting read and write: the ceiling of the shares."""
    size = 1 << 30
    pairs = [(torch.empty(size, dtype=torch.uint8, device="cuda"), torch.ones(size, dtype=torch.uint8, device="cuda"))]
    stats = cold([lambda to=to, x=x: to.copy_(x) for to, x in pairs * 4])
    return 2 * size / (stats.median_ms * 1e-3)


def row(case: Case, direction: str, provider: str, stats: _timing.Stats, **more) -> dict:
    (found,) = _results.rows_of(case.op, case.name, direction, case.dtype, case.layout, {provider: stats})
    return found | more


def bench_kernels(case: Case, bandwidth: float) -> None:
    """The kernels alone: share of the copy bandwidth, cold L2."""
    from strucfast.ops import _registry

    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    for direction in ("forward", "backward"):
        sets = max(2, min(64, -(-3 * l2 // case.bytes(direction))))
        tensors = [case.tensors() for _ in range(sets)]
        rows = []
        for backend in _registry.get(case.op).order["cuda"]:
            reason = _registry._why_not(_registry.get(case.op), backend, "cuda", case.dtype)
            if reason is not None:
                raise RuntimeError(f"{backend}: {reason}")
            kernels = _registry._kernels(case.op, backend)
            stats = cold([case.calls(kernels, t)[direction] for t in tensors])
            rate = case.bytes(direction) / (stats.median_ms * 1e-3)
            share = round(rate / bandwidth, 4)
            rows.append(
                row(case, direction, f"{backend} kernel", stats, gb_per_s=round(rate / 1e9, 1), share_of_copy=share)
            )
            print(
                f"{case.op:<20} {case.name:<16} {direction:<9} {str(case.dtype)[6:]:<9} {case.layout:<14} {backend:<7}"
                f" {stats.median_ms * 1e3:9.1f} us  {100 * share:5.1f}% of copy",
                flush=True,
            )
        save(rows)


def bench_users(case: Case, compiled: bool) -> None:
    """What a user sees, autograd and launches included, against eager and torch.compile."""
    import strucfast as sf
    from benchmarks._passes import leaves, passes
    from strucfast.ops import _registry

    x, _, *parameters = case.tensors()
    fused, eager = case.public()
    inputs = leaves(x, *parameters)

    def forced(backend):
        def call(*arguments):
            with sf.use_backend(backend):
                return fused(*arguments)

        return call

    backends = {backend: forced(backend) for backend in _registry.get(case.op).order["cuda"]}
    functions = {"strucfast": fused, **backends, "eager": eager}
    if compiled:
        torch.compiler.reset()
        functions["torch.compile"] = torch.compile(eager, dynamic=False)
    for direction in ("forward", "both"):
        providers = {name: passes(lambda f=f: f(*inputs), inputs, direction) for name, f in functions.items()}
        stats = _timing.compare(providers, device="cuda", seconds=1.0)
        save(_results.rows_of(case.op, case.name, direction, case.dtype, case.layout, stats))
        ours = stats["strucfast"].median_ms
        ratios = "  ".join(f"{n} {s.median_ms / ours:.2f}x" for n, s in stats.items() if n != "strucfast")
        print(f"{case.op:<20} {case.name:<16} {direction:<9} {ours * 1e3:9.1f} us  {ratios}", flush=True)


def bench_str_tfm() -> None:
    import strucfast as sf
    from benchmarks._passes import leaves, passes
    from benchmarks.baselines.str_tfm import LoopStrTfm, bmm_str_tfm

    for name, (n, d, widths) in STACKS.items():
        torch.manual_seed(0)
        torch.compiler.reset()
        loop = LoopStrTfm(d, widths).cuda()
        weights, biases = loop.stacked()
        (u,) = leaves(torch.randn(n, d, widths[0], device="cuda"))
        weights, biases = leaves(*weights), leaves(*biases)
        stacked, looped = [u, *weights, *biases], [u, *loop.parameters()]
        compiled = torch.compile(bmm_str_tfm, dynamic=False)

        def forced(backend, u=u, weights=weights, biases=biases):
            def call():
                with sf.use_backend(backend):
                    return sf.ops.str_tfm(u, weights, biases)

            return call

        for direction in ("forward", "both"):
            providers = {
                "strucfast": passes(forced("auto"), stacked, direction),
                "triton": passes(forced("triton"), stacked, direction),
                "cuda": passes(forced("cuda"), stacked, direction),
                "eager": passes(lambda loop=loop, u=u: loop(u), looped, direction),
                "bmm": passes(lambda u=u, w=weights, b=biases: bmm_str_tfm(u, w, b), stacked, direction),
                "torch.compile": passes(lambda c=compiled, u=u, w=weights, b=biases: c(u, w, b), stacked, direction),
            }
            stats = _timing.compare(providers, device="cuda", seconds=1.5)
            save(_results.rows_of("str_tfm", name, direction, torch.float32, "contiguous", stats))
            print(
                f"str_tfm {name} {direction}: "
                + "  ".join(f"{k} {s.median_ms * 1e3:.1f} us" for k, s in stats.items()),
                flush=True,
            )


def bench_losses(maker: Callable) -> None:
    """A density or statistic: bound by exponentials and by launches, not by memory."""
    from benchmarks import gpu_losses

    save(gpu_losses.measure(maker(), "cuda", exps_per_s=exponential_limit()))


def exponential_limit() -> float:
    """Exponentials per second: 16 a clock and multiprocessor, from sm_80 to sm_100."""
    properties = torch.cuda.get_device_properties(0)
    kilohertz = getattr(properties, "clock_rate", 0) or _clock_kilohertz()
    return 16e3 * properties.multi_processor_count * kilohertz


def _clock_kilohertz() -> int:
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        return 1000 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


# dSprites whole, and the sample that public implementations take of Shapes3D: rows, codes, values of each factor.
HISTOGRAMS = {
    "(737280,10) dsprites": (737_280, 10, (3, 6, 40, 32, 32)),
    "(10000,12) shapes3d": (10_000, 12, (10, 10, 10, 8, 4, 15)),
}
BINS = 20


def histogram_case(name: str, device: str = "cuda") -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (N, D) float32 that mix the factors, and factors (N, K)."""
    rows, columns, sizes = HISTOGRAMS[name]
    generator = torch.Generator(device).manual_seed(0)
    factors = torch.stack([torch.randint(0, s, (rows,), generator=generator, device=device) for s in sizes], dim=1)
    mix = torch.randn(len(sizes), columns, generator=generator, device=device)
    noise = torch.randn(rows, columns, generator=generator, device=device)
    return factors / torch.tensor(sizes, device=device) @ mix + 0.1 * noise, factors


def eager_counts(codes: torch.Tensor, factors: torch.Tensor, edges: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """The same counts from torch's searchsorted and one bincount; edges (D, bins + 1) float32, factors from 0."""
    columns, bins, values = codes.shape[1], edges.shape[1] - 1, int(starts[-1])
    labels = torch.searchsorted(edges[:, 1:-1].contiguous(), codes.t().contiguous(), right=True)
    rows = torch.arange(columns, device=codes.device)[:, None] * bins + labels
    cells = rows[:, :, None] * values + (factors + starts[:-1])
    return torch.bincount(cells.flatten(), minlength=columns * bins * values).view(columns, bins, values)


def bench_histogram(name: str, bandwidth: float) -> None:
    """The kernels alone, as a share of the copy bandwidth, and MIG as users call it."""
    import numpy as np

    import strucfast as sf
    from strucfast.metrics import _device, _histogram

    codes, factors = histogram_case(name)
    edges = torch.from_numpy(_device.rounded_up(_histogram.bin_edges(codes, BINS))).cuda()
    starts = torch.tensor([0, *np.cumsum(HISTOGRAMS[name][2])], device="cuda")
    low, values = torch.zeros_like(starts[:-1]), int(starts[-1])
    call = torch.ops.strucfast._joint_histogram_cuda
    counts = call(codes, edges, factors, low, starts, values)
    if not torch.equal(counts, eager_counts(codes, factors, edges, starts)):
        raise RuntimeError("joint histogram: torch counts otherwise; nothing was measured")
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    work = {
        "joint_histogram": (
            codes.nbytes + factors.nbytes + counts.nbytes,
            lambda c, f: call(c, edges, f, low, starts, values),
        ),
        "column_range": (codes.nbytes, lambda c, f: torch.ops.strucfast._column_range_cuda(c)),
    }
    for op, (moved, function) in work.items():
        sets = [(codes.clone(), factors.clone()) for _ in range(max(2, min(64, -(-3 * l2 // moved))))]
        stats = cold([lambda c=c, f=f, function=function: function(c, f) for c, f in sets])
        rate = moved / (stats.median_ms * 1e-3)
        found = _results.rows_of(op, name, "forward", torch.float32, "contiguous", {"cuda kernel": stats})
        extra = {"gb_per_s": round(rate / 1e9, 1), "share_of_copy": round(rate / bandwidth, 4)}
        save([figures | extra for figures in found])
        print(f"{op} {name}: {stats.median_ms * 1e3:.1f} us, {100 * rate / bandwidth:.1f}% of copy", flush=True)
    arrays = codes.cpu().numpy(), factors.cpu().numpy()
    providers = {
        "strucfast": lambda: sf.metrics.mig(codes, factors, BINS),
        "cpp": lambda: sf.metrics.mig(*arrays, BINS),
        "eager, counts only": lambda: eager_counts(codes, factors, edges, starts),
    }
    stats = _timing.compare(providers, device="cuda", seconds=2.0)
    save(_results.rows_of("mig", name, "forward", torch.float32, "contiguous", stats))
    print(f"mig {name}: " + "  ".join(f"{k} {s.median_ms:.3f} ms" for k, s in stats.items()), flush=True)


def bench_dci() -> None:
    """DCI of 12 codes, 10,000 / 5,000 points, 57 classes: on the card, and by the host's kernel on all its cores."""
    import strucfast as sf
    from benchmarks.bench_boosting import KINDS, halves, problem

    for kind in KINDS:
        arrays = halves(*problem(kind))
        tensors = [torch.from_numpy(a).cuda() for a in arrays]
        ours, host = sf.metrics.dci(*tensors), sf.metrics.dci(*arrays)
        if abs(ours.disentanglement - host.disentanglement) > 2e-3:
            raise RuntimeError(f"dci {kind}: {ours.disentanglement} on the card, {host.disentanglement} on the host")
        providers = {"strucfast": lambda t=tensors: sf.metrics.dci(*t), "cpp": lambda a=arrays: sf.metrics.dci(*a)}
        stats = _timing.compare(providers, device="cuda", seconds=3.0)
        case = f"{kind}, 6 factors (57 classes)"
        save(_results.rows_of("dci", case, "forward", torch.float32, "contiguous", stats))
        print(f"dci {case}: " + "  ".join(f"{k} {s.median_ms:.1f} ms" for k, s in stats.items()), flush=True)


def bench(clock: Clock) -> int:
    from benchmarks import gpu_losses

    bandwidth = copy_bandwidth()
    print(f"copy: {bandwidth / 1e12:.2f} TB/s", flush=True)
    save([], copy_gb_per_s=round(bandwidth / 1e9, 1))
    work = [(f"kernels {case}", lambda case=case: bench_kernels(case, bandwidth)) for case in cases()]
    work += [(f"histogram {name}", lambda name=name: bench_histogram(name, bandwidth)) for name in HISTOGRAMS]
    work += [("dci", bench_dci), ("str_tfm", bench_str_tfm)]
    work += [(name, lambda maker=maker: bench_losses(maker)) for name, maker in gpu_losses.cases()]
    # torch.compile needs seconds for each shape: it is compared at two sizes.
    work += [(f"users {case}", lambda case=case: bench_users(case, compiled=case.size in (16, 64))) for case in cases()]
    return run_all(work, clock)


def run_all(work: list[tuple[str, Callable[[], None]]], clock: Clock) -> int:
    """Every piece for itself: one that fails is reported and the rest goes on."""
    failed = skipped = 0
    for name, call in work:
        if clock.left() < 15:
            skipped += 1
            continue
        try:
            call()
        except Exception:
            failed += 1
            print(f"FAILED {name}", flush=True)
            traceback.print_exc()
        torch.cuda.empty_cache()
    if skipped:
        print(f"{skipped} of {len(work)} pieces were left out: no time", flush=True)
    return 1 if failed or skipped == len(work) else 0


# train


def train(clock: Clock) -> int:
    return run_all([("step", bench_step), ("run", lambda: short_run(min(60.0, clock.left() / 3)))], clock)


def _training_config(graph: bool):
    from strucfast.training import TrainConfig

    config = TrainConfig()
    config.train.precision = "bf16"
    config.train.device = "cuda"
    config.train.cuda_graph = graph
    return config


def bench_step() -> None:
    """SAE-12 (64x64x3, batch 128, bf16 autocast, channels_last): a whole update, fused and as plain layers."""
    import strucfast as sf
    from benchmarks.baselines.sae import PlainSAE
    from strucfast.training.engine import Engine

    device = torch.device("cuda", torch.cuda.current_device())
    images = torch.randint(0, 256, (128, 64, 64, 3), dtype=torch.uint8, device=device)

    def model():
        torch.manual_seed(0)
        return sf.models.build("sae-12", image_size=64, channels=3)

    def ours(graph: bool, backend: str) -> Callable[[], object]:
        engine = Engine(model(), _training_config(graph), device)
        count = iter(range(1 << 30))

        def step():
            with sf.use_backend(backend):
                return engine.step(images, next(count))

        return step

    def plain(compiled: bool) -> Callable[[], object]:
        net = PlainSAE(model()).to(device=device, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-4, fused=True)
        loss = torch.compile(net) if compiled else net

        def step():
            x = images.permute(0, 3, 1, 2).float().div(255)
            with torch.autocast("cuda", torch.bfloat16):
                total = loss(x)
            total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    sides = {
        "strucfast": lambda: ours(False, "auto"),
        "strucfast, CUDA graph": lambda: ours(True, "auto"),
        "cuda, CUDA graph": lambda: ours(True, "cuda"),
        "reference": lambda: ours(False, "reference"),
        "reference, CUDA graph": lambda: ours(True, "reference"),
        "eager": lambda: plain(False),
        "torch.compile": lambda: plain(True),
    }
    steps = {}
    for name, make in sides.items():
        # A side that cannot run must not take the others with it.
        try:
            steps[name] = make()
            steps[name]()
        except Exception:
            steps.pop(name, None)
            print(f"FAILED side {name}", flush=True)
            traceback.print_exc()
    stats = _timing.compare(steps, device="cuda", seconds=20.0)
    save(_results.rows_of("train_step", "sae-12 (128,3,64,64)", "step", torch.bfloat16, "channels_last", stats))
    for name, s in stats.items():
        print(f"sae-12 step: {name:<24} {s.median_ms:8.3f} ms ({s.p20_ms:.3f} to {s.p80_ms:.3f})", flush=True)
    if len(steps) < len(sides):
        raise RuntimeError(f"sides that failed: {sorted(set(sides) - set(steps))}")


def short_run(seconds: float) -> None:
    """A real training run: procedural Shapes3D, SAE-12, one CUDA graph per step."""
    from strucfast.training import Trainer

    config = _training_config(graph=True)
    config.train.max_minutes = seconds / 60
    config.train.eval_every = 2000
    config.log.tensorboard = False
    config.log.progress = "none"
    with tempfile.TemporaryDirectory() as folder:
        history = Trainer(config, Path(folder) / "run").fit().history()
    last = [h for h in history if h["split"] == "validation"][-1]
    rate = statistics.median(h["images_per_s"] for h in history if h["split"] == "train")
    figures = {
        "steps": last["step"],
        "validation_loss": last["loss"],
        "images_per_s": round(rate),
        "seconds": round(seconds),
    }
    save([], training_run=figures)
    print(f"sae-12 run: {figures}", flush=True)


PARTS = {"build": build, "test": test, "bench": bench, "train": train}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    part = parser.parse_args().part
    try:
        require_gpu()
    except SystemExit as reason:
        print(reason, file=sys.stderr)
        return 2
    try:
        code = PARTS[part](Clock(PART_SECONDS))
    except subprocess.TimeoutExpired:
        print(f"gpu-{part}: stopped after {PART_SECONDS} s", file=sys.stderr)
        code = 1
    print(f"gpu-{part}: {'done' if code == 0 else 'FAILED'}; results in {_results.results_path('cuda')}")
    return code


if __name__ == "__main__":
    sys.exit(main())
