"""Codes and factors as the metrics take them: numpy or torch in, checked numpy arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from . import _device


def _array(name: str, values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        # numpy has no bfloat16.
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()
        values = values.numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: expected a rectangular array ({error})") from None
    if array.ndim != 2 or 0 in array.shape:
        letters = "(N, K)" if name.startswith(("factors", "labels")) else "(N, D)"
        raise ValueError(f"{name}: expected a non-empty array {letters}, got shape {array.shape}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return array


def check_codes(
    codes: Any, name: str = "codes", *, keep_device: bool = False, like: Any = None
) -> np.ndarray | torch.Tensor:
    """(N, D) codes as C-contiguous float32 or float64; finiteness is the histogram's first pass.

    ``keep_device``: codes on a GPU whose kernels are there stay tensors on it, for metrics that have CUDA kernels.
    ``like``: other checked codes; where these are such a tensor, the codes become one beside it.
    """
    if isinstance(like, torch.Tensor):
        return _device.check_codes(_device.beside(codes, like, name), name)
    if keep_device and _device.takes(codes):
        return _device.check_codes(codes, name)
    array = _array(name, codes)
    half = array.dtype == np.float16
    dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.float32 if half else np.float64
    return np.ascontiguousarray(array, dtype=dtype)


def check_factors(
    factors: Any, rows: int | None = None, name: str = "factors", *, like: Any = None
) -> np.ndarray | torch.Tensor:
    """(N, K) factors as C-contiguous int64; floats are taken where every one is a whole number.

    ``like``: checked codes; where these are a tensor on a GPU, so become the factors.
    """
    if isinstance(like, torch.Tensor):
        return _device.check_factors(factors, like, name)
    array = _array(name, factors)
    if rows is not None and len(array) != rows:
        raise ValueError(f"{name}: expected {rows} rows, as many as codes, got {len(array)}")
    if array.dtype.kind == "f":
        # Written so that NaN and infinity fail too.
        whole = array == np.rint(array)
        whole &= np.isfinite(array)
        if not whole.all():
            row, column = np.argwhere(~whole)[0]
            raise ValueError(f"{name}: expected integers, got {array[row, column]} in row {row}, column {column}")
    return np.ascontiguousarray(array, dtype=np.int64)


def check_finite(codes: np.ndarray | torch.Tensor, name: str = "codes") -> None:
    """ValueError naming the first of checked codes (N, D) that is NaN or infinite."""
    if isinstance(codes, torch.Tensor):
        _device.column_range(codes, name)
        return
    finite = np.isfinite(codes)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(f"{name}: expected finite values, got {codes[row, column]} in row {row}, column {column}")


def check_real_factors(
    factors: Any, rows: int, name: str = "factors", *, like: Any = None
) -> np.ndarray | torch.Tensor:
    """(N, K) continuous factors as float64, all finite; ``like`` as in :func:`check_factors`."""
    if isinstance(like, torch.Tensor):
        return _device.check_real_factors(factors, like, name)
    array = np.ascontiguousarray(_array(name, factors), dtype=np.float64)
    if len(array) != rows:
        raise ValueError(f"{name}: expected {rows} rows, as many as codes, got {len(array)}")
    check_finite(array, name)
    return array


def check_test(
    codes: np.ndarray, factors: np.ndarray, codes_test: Any, factors_test: Any, *, continuous: bool = False
) -> tuple[np.ndarray, np.ndarray] | None:
    """Unseen rows to score, with columns as the checked ``codes`` and ``factors``; None where neither is given."""
    if (codes_test is None) != (factors_test is None):
        missing = "codes_test" if codes_test is None else "factors_test"
        raise ValueError(f"{missing}: expected both codes_test and factors_test, or neither")
    if codes_test is None:
        return None
    codes_test = check_codes(codes_test, "codes_test")
    check_finite(codes_test, "codes_test")
    check = check_real_factors if continuous else check_factors
    factors_test = check(factors_test, len(codes_test), "factors_test")
    for name, array, like in (("codes_test", codes_test, codes), ("factors_test", factors_test, factors)):
        if array.shape[1] != like.shape[1]:
            raise ValueError(f"{name}: expected {like.shape[1]} columns as {name[:-5]}, got {array.shape[1]}")
    return codes_test, factors_test


def check_names(name: str, names: Any, count: int) -> tuple[str, ...] | None:
    """``count`` names, or None."""
    if names is None or len(names) == 0:
        return None
    if len(names) != count:
        raise ValueError(f"{name}: expected {count} names, got {len(names)}")
    return tuple(str(n) for n in names)
