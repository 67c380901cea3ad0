"""Checks of shapes, dtypes and devices for the public functions; never of values, which would synchronise."""

from collections.abc import Sequence
from numbers import Integral

import torch

from ..reference._activations import ACTIVATIONS, SCALE_MAPS
from ._registry import ALL_FLOATS


def is_plain(x: object, affine: Sequence, per_channel: Sequence = ()) -> bool:
    """Whether features and parameters are all of one dtype and device and of fitting shapes, as they mostly are.

    It asks in a third of the time what :func:`check_features`, :func:`check_affine`, :func:`check_per_channel` and
    :func:`unify_parameters` ask; where it says no, they find out what is the matter, if anything.
    """
    if not isinstance(x, torch.Tensor):
        return False
    shape, dtype, device = x.shape, x.dtype, x.device
    if not 2 <= len(shape) <= 5 or dtype not in ALL_FLOATS:
        return False
    per_sample = shape[:2]
    for value in affine:
        if value is not None:
            if not isinstance(value, torch.Tensor) or value.dtype is not dtype or value.device != device:
                return False
            own = value.shape
            if own != per_sample and own != shape:
                return False
    for value in per_channel:
        if value is not None:
            if not isinstance(value, torch.Tensor) or value.dtype is not dtype or value.device != device:
                return False
            if value.shape != shape[1:2]:
                return False
    return True


def is_int(value: object) -> bool:
    """An int or one of numpy's; a bool is neither."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_float_tensor(function: str, argument: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{function}: {argument} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in ALL_FLOATS:
        raise TypeError(f"{function}: {argument} must be float32, float64, bfloat16 or float16, got {value.dtype}")


def check_features(function: str, x: torch.Tensor) -> None:
    check_float_tensor(function, "x", x)
    if not 2 <= x.dim() <= 5:
        raise ValueError(f"{function}: x must be (N, C, *S) with 0 to 3 spatial dims, got shape {tuple(x.shape)}")


def check_device(function: str, argument: str, value: torch.Tensor, x: torch.Tensor) -> None:
    if value.device != x.device:
        raise ValueError(f"{function}: {argument} must be on x's device {x.device}, got {value.device}")


def check_affine(function: str, argument: str, value: torch.Tensor, x: torch.Tensor) -> None:
    """``value`` is (N, C), or of x's shape."""
    check_float_tensor(function, argument, value)
    check_device(function, argument, value, x)
    if value.shape != x.shape and value.shape != x.shape[:2]:
        raise ValueError(
            f"{function}: {argument} must have shape (N, C) = {tuple(x.shape[:2])} or x's shape {tuple(x.shape)},"
            f" got {tuple(value.shape)}"
        )


def check_per_channel(function: str, argument: str, value: torch.Tensor, x: torch.Tensor) -> None:
    check_float_tensor(function, argument, value)
    check_device(function, argument, value, x)
    if value.shape != x.shape[1:2]:
        raise ValueError(f"{function}: {argument} must have shape (C,) = ({x.shape[1]},), got {tuple(value.shape)}")


def activation_code(function: str, name: str, *, identity: bool = True) -> int:
    if name not in ACTIVATIONS or (name == "identity" and not identity):
        allowed = ACTIVATIONS if identity else ACTIVATIONS[1:]
        raise ValueError(f"{function}: activation must be one of {allowed}, got {name!r}")
    return ACTIVATIONS.index(name)


def scale_map_code(function: str, name: str) -> int:
    if name not in SCALE_MAPS:
        raise ValueError(f"{function}: scale_map must be one of {SCALE_MAPS}, got {name!r}")
    return SCALE_MAPS.index(name)


def unify_parameters(x: torch.Tensor, parameters: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Kernels take parameters of one dtype, x's or the compute type's; anything else is cast to the compute type."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    dtypes = {p.dtype for p in parameters if p is not None}
    if len(dtypes) <= 1 and dtypes <= {x.dtype, compute}:
        return list(parameters)
    return [None if p is None else p.to(compute) for p in parameters]
