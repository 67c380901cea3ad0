"""Rows of figures and the files they go to: ``<results>/<device>.json`` (schema: benchmarks/results/README.md)."""

import datetime
import functools
import json
import os
import platform
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks._timing import Stats

ROOT = Path(__file__).resolve().parents[1]
KEY = ("op", "case", "direction", "dtype", "layout", "provider")
OURS = ("strucfast", "cpp", "triton", "cuda")


def device_name(device: str = "cpu") -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    try:
        models = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = models[0].strip() if models else platform.processor()
    except OSError:
        name = platform.processor()
    return f"{name or platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def meta(device: str = "cpu", allocator: str = "default", ceilings: dict | None = None) -> dict:
    about = {
        "commit": os.environ.get("COMMIT") or _commit(),
        "device": device_name(device),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "driver": _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if "cuda" in device
        else None,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "allocator": allocator,
        "python": platform.python_version(),
    }
    return about if ceilings is None else about | {"ceilings": ceilings}


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def _commit() -> str | None:
    commit = _ask("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD")
    command = ("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")
    changed = _ask(*command)
    return f"{commit}-dirty" if commit and changed else commit


@functools.cache
def _ask(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def results_path(device: str = "cpu", allocator: str | None = None) -> Path:
    """Where figures of this machine go; those of glibc's unchanged allocator (CPU) have a file of their own."""
    folder = Path(os.environ.get("RESULTS_DIR") or ROOT / "benchmarks" / "results")
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return folder / f"{slug}{'-default-allocator' if allocator == 'default' else ''}.json"


class CannotSave(Exception):
    """Figures could not be kept; the text names the file and what to do."""


def check_writable(path: Path) -> None:
    """Raises CannotSave before a long run whose figures would be lost: folder, space, and a file that can be read."""
    probe = path.with_suffix(f".{os.getpid()}.probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # As much as a file of results takes at most.
            probe.write_bytes(b"0" * (1 << 20))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise CannotSave(f"results cannot be saved to {path.parent}: {error}; free space or set RESULTS_DIR") from None
    _known(path)


def _known(path: Path) -> dict[tuple, dict]:
    if not path.exists():
        return {}
    try:
        return {tuple(row[k] for k in KEY): row for row in json.loads(path.read_text())["results"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotSave(f"{path} is no result file ({error}); move it away") from None


def record(path: Path, about: dict, rows: list[dict], *, whole: bool = False) -> None:
    """Merge rows into a result file, the newest for a key; replaced in one step, so that a kill leaves the old.

    ``whole``: the rows are all providers of their comparisons, so that no ratio is taken over an older run's figure.
    """
    known = _known(path)
    if whole:
        measured = {tuple(row[k] for k in KEY[:-1]) for row in rows}
        known = {key: row for key, row in known.items() if key[:-1] not in measured}
    known |= {tuple(row[k] for k in KEY): row for row in rows}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"meta": about, "results": list(known.values())}, indent=1) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CannotSave(f"results cannot be saved to {path}: {error}; free space or set RESULTS_DIR") from None


def rows_of(op: str, case: str, direction: str, dtype: torch.dtype, layout: str, stats: dict[str, Stats]) -> list[dict]:
    shared = {
        "op": op,
        "case": case,
        "direction": direction,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": layout,
    }
    return [shared | {"provider": name} | {k: round(v, 6) for k, v in asdict(s).items()} for name, s in stats.items()]


def is_ours(provider: str) -> bool:
    """ "strucfast", a backend's name, or one of them with more behind it ("strucfast, CUDA graph", "cuda kernel")."""
    return re.split("[ ,]", provider)[0] in OURS


def ours(rows: list[dict]) -> dict:
    """What a user gets by default, or the first of ours, in the rows of one comparison."""
    mine = [row for row in rows if is_ours(row["provider"])]
    if not mine:
        names = ", ".join(row["provider"] for row in rows)
        raise ValueError(f"a comparison needs a provider of ours ({', '.join(OURS)}), got {names}")
    return next((row for row in mine if row["provider"] == "strucfast"), mine[0])
