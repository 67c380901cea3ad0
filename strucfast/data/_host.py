"""The native renderers, or the numpy fallback with one warning."""

import functools
import warnings
from types import ModuleType

import torch.utils.data

from .. import _native


@functools.cache
def host() -> ModuleType | None:
    """``strucfast._host``, or None (said once) where it is missing."""
    try:
        return _native.host()
    except RuntimeError as error:
        warnings.warn(f"rendering with numpy, 25 times slower and slow to start: {error}", RuntimeWarning, stacklevel=3)
        return None


def threads(module: ModuleType) -> int:
    """One inside a DataLoader worker, where the workers already share the cores."""
    return 1 if torch.utils.data.get_worker_info() is not None else module.default_threads()
