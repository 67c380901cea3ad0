"""Codes on disk: one HDF5 file with the names of latents and factors, all that a metric needs."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._histogram import column_range
from ._inputs import check_codes, check_factors, check_finite, check_names

_NAMES = ("code_names", "factor_names")


@dataclass(frozen=True)
class Codes:
    """Codes (N, D) float32 or float64; factors (N, K) int64, row numbers (N,) and names where known.

    ``logvar`` (N, D): log-variances of the posteriors whose means are ``codes``.
    """

    codes: np.ndarray
    factors: np.ndarray | None = None
    indices: np.ndarray | None = None
    code_names: tuple[str, ...] | None = None
    factor_names: tuple[str, ...] | None = None
    logvar: np.ndarray | None = None


def check_logvar(logvar: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Log-variances of posteriors, of the codes' shape (N, D) and finite."""
    logvar = check_codes(logvar, "logvar")
    if logvar.shape != shape:
        raise ValueError(f"logvar: expected the codes' shape {shape}, got {logvar.shape}")
    check_finite(logvar, "logvar")
    return logvar


def _checked(codes: Any, factors: Any, indices: Any, code_names: Any, factor_names: Any, logvar: Any) -> Codes:
    codes = check_codes(codes)
    column_range(codes, "codes")
    if factors is not None:
        factors = check_factors(factors, len(codes))
    if indices is not None:
        indices = np.asarray(indices)
        if indices.shape != (len(codes),) or indices.dtype.kind not in "iu":
            raise ValueError(f"indices: expected ({len(codes)},) integers, got {indices.dtype} {indices.shape}")
        indices = indices.astype(np.int64)
    if factors is None and factor_names is not None and len(factor_names):
        raise ValueError(f"factor_names: expected none without factors, got {tuple(factor_names)}")
    return Codes(
        codes,
        factors,
        indices,
        check_names("code_names", code_names, codes.shape[1]),
        None if factors is None else check_names("factor_names", factor_names, factors.shape[1]),
        None if logvar is None else check_logvar(logvar, codes.shape),
    )


def save_codes(
    path: str | os.PathLike,
    codes: Any,
    factors: Any = None,
    *,
    indices: Any = None,
    code_names: Any = None,
    factor_names: Any = None,
    logvar: Any = None,
) -> Path:
    """Write codes (N, D), optional factors (N, K) and row numbers (N,), and names to an HDF5 file, all or nothing.

    Datasets ``codes``, ``factors``, ``indices``, ``logvar`` (N, D); attributes ``code_names``,
    ``factor_names`` (lists of strings).

    Raises:
        ValueError, TypeError: arrays that do not belong together, codes that are not finite.
    """
    import h5py

    path = Path(path)
    data = _checked(codes, factors, indices, code_names, factor_names, logvar)
    # A reader sees the old file or the whole new one.
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with h5py.File(partial, "w") as file:
            for field in ("codes", "factors", "indices", "logvar"):
                if getattr(data, field) is not None:
                    file.create_dataset(field, data=getattr(data, field))
            for field in _NAMES:
                if getattr(data, field) is not None:
                    file.attrs[field] = list(getattr(data, field))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_codes(path: str | os.PathLike) -> Codes:
    """Read codes from an HDF5 file (:func:`save_codes`) or an .npz with the same fields.

    ``codes`` is needed; ``factors``, ``indices``, ``logvar``, ``code_names`` and ``factor_names`` may be missing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, a field that is missing or of the wrong kind; names the file and the field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        fields = _read_npz(path) if path.suffix == ".npz" else _read_h5(path)
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{path}: field 'codes': not a readable file of codes ({error})") from error
    if "codes" not in fields:
        raise ValueError(f"{path}: field 'codes': missing; the file has {sorted(fields)}")
    try:
        return _checked(*(fields.get(name) for name in ("codes", "factors", "indices", *_NAMES, "logvar")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: field {error}") from error


def _read_h5(path: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(path, "r") as file:
        fields = {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset)}
        return fields | {name: list(file.attrs[name]) for name in _NAMES if name in file.attrs}


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
