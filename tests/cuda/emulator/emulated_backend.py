"""A pytest plugin: the CUDA C++ backend of this process is the emulated library, and takes CPU tensors."""

import ctypes
import os

import torch

from strucfast import _native
from strucfast.ops import _registry

LIBRARY = os.environ["STRUCFAST_EMULATED_CUDA"]
ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}

torch.ops.load_library(LIBRARY)
controls = ctypes.CDLL(LIBRARY)
controls.emulator_set_shared_limit.argtypes = [ctypes.c_longlong]
controls.emulator_launches.restype = ctypes.c_longlong
controls.emulator_set_order(ORDERS[os.environ.get("STRUCFAST_EMULATED_ORDER", "forward")])

_missing = _native.missing
_has_kernel = _registry._has_kernel
_native.missing = lambda half: None if half == "cuda" else _missing(half)
_registry._has_kernel = lambda name, backend: True if backend == "cuda" else _has_kernel(name, backend)
for _name in _registry.names():
    # An op whose GPU kernel is Triton's alone has nothing to emulate.
    if "cuda" in _registry.get(_name).order["cuda"]:
        _registry.get(_name).order = {"cpu": ("cpp", "cuda")}
