"""``strucfast.show_config()``: versions, what is loaded, and why the rest is not."""

import importlib.metadata
import os
import platform

import torch

from . import _native
from ._version import __version__

_PACKAGES = ("numpy", "triton", "h5py", "scikit-learn", "safetensors", "tyro", "matplotlib", "tensorboard")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def config() -> dict:
    """The same facts as :func:`show_config`, as a plain dict."""
    from .ops import _registry

    halves = {half: _native.missing(half) for half in _native.HALVES}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "strucfast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpus": gpus,
        },
        "halves": {half: "loaded" if reason is None else f"missing: {reason}" for half, reason in halves.items()},
        "backend": _registry.current_backend(),
        "ops": {name: _registry.describe(name) for name in _registry.names()},
    }


def show_config() -> None:
    """Print versions, the native halves (loaded, or the reason why not) and each op's dispatch order."""
    facts = config()
    lines = [
        f"strucfast {facts['strucfast']}  (python {facts['python']}, torch {facts['torch']}, cuda {facts['cuda']})"
    ]
    lines += [f"  {name:<14} {version}" for name, version in facts["packages"].items()]
    lines.append("machine")
    lines += [f"  {name:<14} {value}" for name, value in facts["machine"].items()]
    lines.append("native halves")
    lines += [f"  {name:<14} {state}" for name, state in facts["halves"].items()]
    lines.append(f"ops (backend: {facts['backend']})")
    lines += [f"  {name:<22} {order}" for name, order in facts["ops"].items()]
    print("\n".join(lines))
