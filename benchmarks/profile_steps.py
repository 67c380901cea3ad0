"""Where a training step's time goes: ``python benchmarks/profile_steps.py`` writes results/profiles/<device>.json.

SAE-12, VLAE-12 and the beta-TCVAE at the SAE paper's size (64x64x3, batch 128), float32 and bfloat16, ours and the same
net in plain torch with channels_last. torch's profiler gives the time spent in each operator itself, called ones
excluded; the step as a whole is recorded, too, so that Python and autograd between the operators are in the sum and
nothing is left over. ``step_ms`` is measured without the profiler; the parts are its shares as the profiler has them.

    python benchmarks/profile_steps.py [--models sae-12 ...] [--dtypes bfloat16 ...] [--batch 128]
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEventAvg

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import _models, _results, _timing

PARTS = (
    "convolution",
    "normalisation, activation, affine",
    "pooling",
    "upsampling",
    "structural transforms, rungs, heads",
    "loss",
    "optimizer",
    "copies and fills",
    "Python, autograd and the rest",
)
PROVIDERS = ("strucfast", "channels_last")
# Of the profiled step's wall time: how far the sum of the parts may be off.
TOLERANCE = 0.05


def part_of(name: str, shapes: Sequence, image: tuple[int, ...]) -> str:
    """The part that an operator belongs to, by its name and the shapes of its inputs; ``image`` is (C,H,W)."""
    rank = max((len(shape) for shape in shapes if isinstance(shape, (list, tuple))), default=0)
    first = next((tuple(shape) for shape in shapes if shape), ())
    stem = name.removeprefix("aten::").rstrip("_")
    if "convolution" in stem and stem != "convolution_overrideable":
        return "convolution"
    if "max_pool" in stem or stem in ("amax", "eq"):
        return "pooling"
    if "upsample" in stem:
        return "upsampling"
    if stem.startswith("Optimizer.") or "adam" in stem:
        return "optimizer"
    if stem in ("copy", "_to_copy", "to", "contiguous", "clone", "cat", "fill", "zero", "zeros_like"):
        return "copies and fills"
    if "aggregate" in stem or "kl_terms" in stem or "logsumexp" in stem or "log_sigmoid" in stem:
        return "loss"
    if "binary_cross_entropy" in stem:
        return "loss"
    if "str_tfm" in stem or stem in ("addmm", "mm", "bmm", "baddbmm", "addbmm", "linear"):
        return "structural transforms, rungs, heads"
    if "group_norm" in stem or "_modulate" in stem:
        return "normalisation, activation, affine"
    if not name.startswith("aten::") or rank == 0:
        return "Python, autograd and the rest"
    # What is left is elementwise or a sum: it belongs to what its tensor is.
    if rank == 4:
        return "loss" if first[1:] == image else "normalisation, activation, affine"
    if "mish" in stem:
        return "structural transforms, rungs, heads"
    # All pairs of a batch.
    return "loss" if rank == 3 and first[0] == first[1] else "Python, autograd and the rest"


def profile(step: Callable[[], object], image: tuple[int, ...], repeats: int = 2) -> tuple[float, list[dict]]:
    """Milliseconds of a step, and its parts.

    Raises:
        RuntimeError: the operators' times do not add up to the profiled steps' wall time.
    """
    for _ in range(2):
        step()
    plain = statistics.median(_milliseconds(step) for _ in range(3))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as found:
        # The first recorded operators pay for the profiler's own start.
        torch.zeros(8).add(1)
        began = time.perf_counter()
        for _ in range(repeats):
            with torch.profiler.record_function("step"):
                step()
        wall = (time.perf_counter() - began) * 1e3
    spent: Counter[str] = Counter()
    event: FunctionEventAvg
    for event in found.key_averages(group_by_input_shape=True):
        spent[part_of(event.key, event.input_shapes or (), image)] += event.self_cpu_time_total / 1e3
    total = sum(spent.values())
    if abs(total - wall) > TOLERANCE * wall:
        raise RuntimeError(f"the parts add up to {total:.1f} ms, the steps took {wall:.1f} ms")
    parts = [(name, spent[name] / total) for name in PARTS if spent[name]]
    return plain, [{"name": name, "ms": round(share * plain, 3), "share": round(share, 4)} for name, share in parts]


def _milliseconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1e3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=_models.NAMES, default=_models.NAMES)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=128, help="images per step; other sizes are printed, not written")
    options = parser.parse_args(arguments)
    if options.batch < 2:
        parser.error(f"--batch: expected at least 2 images, got {options.batch}")
    about = _results.meta(allocator=_timing.warm_allocator())
    path = _results.results_path()
    path = path.parent / "profiles" / path.name
    known = _known(path)
    for name in options.models:
        for dtype in options.dtypes:
            nets = _models.nets(name)
            for provider in PROVIDERS:
                net = nets[provider]
                step = net.training_step(options.batch, getattr(torch, dtype))
                step_ms, parts = profile(step, net.module.image_shape)
                row = {"model": name, "dtype": dtype, "layout": "channels_last", "provider": provider}
                known[tuple(row.values())] = row | {"step_ms": round(step_ms, 3), "parts": parts}
                print(f"{name} {dtype} {provider}: {step_ms:.0f} ms", flush=True)
                print("\n".join(f"  {part['name']:<38} {part['ms']:9.1f} ms  {part['share']:6.1%}" for part in parts))
    if options.batch == 128:
        _write(path, {"meta": about, "profiles": list(known.values())})
        print(f"written to {path}")
    return 0


def _known(path: Path) -> dict[tuple[str, ...], dict]:
    """Profiles that the file has already, by what tells them apart."""
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text())["profiles"]
        return {tuple(row[key] for key in ("model", "dtype", "layout", "provider")): row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is no file of profiles ({error}); move it away") from None


def _write(path: Path, content: dict) -> None:
    """All or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
