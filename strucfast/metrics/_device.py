"""Metrics on GPU tensors: inputs checked and counted where they lie, small tables back as numpy.

The CUDA kernels are private ops: ``_column_range_cuda``, ``_joint_histogram_cuda`` and ``_boost_cuda``. Where the CUDA
half is missing, ``takes`` says no and the arrays go through the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .. import _native

_library = torch.library.Library("strucfast", "FRAGMENT")
_library.define("_column_range_cuda(Tensor values) -> Tensor")
_library.define(
    "_joint_histogram_cuda(Tensor codes, Tensor edges, Tensor factors, Tensor low, Tensor starts, int values) -> Tensor"
)
_library.define(
    "_boost_cuda(Tensor order, Tensor ranks, Tensor low, Tensor high, Tensor raw, Tensor test_raw, Tensor factor, "
    "Tensor? labels, Tensor? first, Tensor? wanted, Tensor test_values, int rounds, int seed) "
    "-> (Tensor gains, Tensor chosen, Tensor raw_out, Tensor test_raw_out)"
)


def takes(values: Any) -> bool:
    """Whether the metrics' CUDA kernels take these values where they are."""
    return isinstance(values, torch.Tensor) and values.is_cuda and _native.missing("cuda") is None


def check_codes(values: torch.Tensor, name: str) -> torch.Tensor:
    """(N, D) contiguous, float32 or float64; half types become float32, integers float64."""
    _check_matrix(name, values, "(N, D)")
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    elif values.dtype not in (torch.float32, torch.float64):
        values = values.double()
    return values.detach().contiguous()


def check_factors(values: Any, like: torch.Tensor, name: str) -> torch.Tensor:
    """(N, K) contiguous int64 beside the codes; floats are taken where every one is a whole number."""
    values = _factors(values, like, name)
    if values.is_floating_point():
        whole = (values == values.round()) & values.isfinite()
        if not bool(whole.all()):
            row, column = _first(~whole)
            value = values[row, column].item()
            raise ValueError(f"{name}: expected integers, got {value} in row {row}, column {column}")
    return values.long().contiguous()


def check_real_factors(values: Any, like: torch.Tensor, name: str) -> torch.Tensor:
    """(N, K) contiguous float64 beside the codes, all finite."""
    values = _factors(values, like, name).double().contiguous()
    column_range(values, name)
    return values


def _factors(values: Any, like: torch.Tensor, name: str) -> torch.Tensor:
    values = beside(values, like, name)
    _check_matrix(name, values, "(N, K)")
    if len(values) != len(like):
        raise ValueError(f"{name}: expected {len(like)} rows, as many as codes, got {len(values)}")
    return values


def beside(values: Any, like: torch.Tensor, name: str) -> torch.Tensor:
    """The values, an array or a tensor anywhere, on the GPU of ``like``."""
    if not isinstance(values, torch.Tensor):
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise ValueError(f"{name}: expected a rectangular array ({error})") from None
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
        # torch has few unsigned types.
        values = torch.from_numpy(array.astype(np.int64 if array.dtype.kind == "u" else array.dtype))
    return values.detach().to(like.device)


def _check_matrix(name: str, values: torch.Tensor, letters: str) -> None:
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name}: expected a non-empty array {letters}, got shape {tuple(values.shape)}")
    if values.is_complex():
        raise TypeError(f"{name}: expected real numbers, got dtype {values.dtype}")


def _first(mask: torch.Tensor) -> tuple[int, int]:
    row, column = mask.nonzero()[0].tolist()
    return row, column


def column_range(values: torch.Tensor, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum of each column of (N, C) values; ValueError naming the first value that is not finite."""
    low, high, strange = torch.ops.strucfast._column_range_cuda(values).cpu().numpy()
    if strange.any():
        row, column = _first(~values.isfinite())
        value = values[row, column].item()
        raise ValueError(f"{name}: expected finite values, got {value} in row {row}, column {column}")
    return low, high


def joint_counts(
    codes: torch.Tensor, edges: np.ndarray, factors: torch.Tensor, low: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """(D, bins, V) int64 counts of the codes binned by float64 ``edges`` against the factors from ``low`` upwards."""
    if codes.dtype == torch.float32:
        edges = rounded_up(edges)
    small = [torch.from_numpy(np.ascontiguousarray(a)).to(codes.device) for a in (edges, low, starts)]
    counts = torch.ops.strucfast._joint_histogram_cuda(codes, small[0], factors, small[1], small[2], int(starts[-1]))
    return counts.cpu().numpy()


def rounded_up(edges: np.ndarray) -> np.ndarray:
    """The least float32 that are >= float64 edges: a float32 is >= the one exactly where it is >= the other."""
    near = edges.astype(np.float32)
    # numpy evaluates the neighbour of the largest float32 too, although no edge lies above it.
    with np.errstate(over="ignore"):
        return np.where(near < edges, np.nextafter(near, np.float32(np.inf)), near)
