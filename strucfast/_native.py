"""Finds and loads the native halves, and keeps the reason when one is missing."""

import functools
import importlib
import json
import os
from pathlib import Path
from types import ModuleType

import torch

_HERE = Path(__file__).resolve().parent
HALVES = ("cpu", "host", "cuda", "triton")


@functools.cache
def build_info() -> dict:
    """What setup.py wrote about the build, half by half; empty when no build ever ran."""
    try:
        return json.loads((_HERE / "_build_info.json").read_text())
    except (OSError, ValueError):
        return {}


def _build_reason(half: str) -> str:
    entry = build_info().get(half)
    if entry is None:
        return "never built: install with `pip install --no-build-isolation .` (or `make build` in a checkout)"
    return entry.get("reason", "the library file is gone: build again")


def _load_op_library(half: str) -> str | None:
    path = _HERE / f"_strucfast_{half}.so"
    if not path.exists():
        return _build_reason(half)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return None


@functools.cache
def missing(half: str) -> str | None:
    """Load one of ``HALVES`` on first use; None when it is there, else the reason in one line."""
    if half == "cpu":
        return _load_op_library("cpu")
    if half == "cuda":
        # The library needs symbols that only a CUDA build of torch has.
        if torch.version.cuda is None:
            return "this torch is a build without CUDA"
        if not torch.cuda.is_available():
            return "no CUDA device is visible"
        return _load_op_library("cuda")
    if half == "triton":
        return _triton_missing()
    if half == "host":
        try:
            importlib.import_module("strucfast._host")
        except ImportError as error:
            built = build_info().get("host", {}).get("built", False)
            return f"strucfast._host does not load: {error}" if built else _build_reason("host")
        return None
    raise ValueError(f"half must be one of {HALVES}, got {half!r}")


def _triton_missing() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton is not installed ({error})"
    # Triton reads the variable when a kernel is decorated, so it holds for the whole process.
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not torch.cuda.is_available():
        return "no GPU is visible (TRITON_INTERPRET=1 runs the kernels slowly on the CPU)"
    return None


def host() -> ModuleType:
    """The pybind11 module ``strucfast._host``; RuntimeError with the reason when it is missing."""
    reason = missing("host")
    if reason is not None:
        raise RuntimeError(f"the host kernels are missing: {reason}")
    return importlib.import_module("strucfast._host")
