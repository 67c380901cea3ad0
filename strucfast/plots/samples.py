"""Pictures decoded by a model: reconstructions, hybrid samples and latent traversals.

A model is anything with ``encode(x)`` (a distribution with ``.mean`` (N, D)) and ``decode(z)`` (images (N, C, H, W) in
[0, 1]), as every class of ``strucfast.models`` has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..samplers import HybridSampler
from .images import image_grid, to_uint8

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def evaluating(model: Any) -> Iterator[torch.device]:
    """Evaluation mode without gradients; gives the model's device and puts its training flag back afterwards."""
    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    training = getattr(model, "training", False)
    try:
        if training:
            model.eval()
        with torch.inference_mode():
            yield torch.device("cpu") if parameter is None else parameter.device
    finally:
        if training:
            model.train()


def as_codes(codes: torch.Tensor | np.ndarray, name: str = "codes") -> torch.Tensor:
    """Codes (N, D) as a float32 tensor on the CPU; ValueError for another shape, no rows, or values not finite."""
    tensor = torch.as_tensor(codes).detach().to("cpu", torch.float32)
    if tensor.dim() != 2 or 0 in tensor.shape:
        raise ValueError(f"{name}: expected shape (N, D) with N, D >= 1, got {tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    return tensor


def as_batch(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 images (N, H, W, C) as the model's input: float32 (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float().div_(255.0).contiguous()


def decode_codes(model: Any, codes: torch.Tensor, batch_size: int = 64) -> np.ndarray:
    """Decodes codes (N, D) batch by batch to uint8 images (N, H, W, C)."""
    with evaluating(model) as device:
        return np.concatenate([to_uint8(model.decode(part.to(device))) for part in codes.split(batch_size)])


def encode_images(model: Any, images: np.ndarray, batch_size: int = 64) -> torch.Tensor:
    """Posterior means (N, D) of uint8 images (N, H, W, C), float32 on the CPU."""
    with evaluating(model) as device:
        parts = [
            model.encode(as_batch(images[start : start + batch_size], device)).mean.float().cpu()
            for start in range(0, len(images), batch_size)
        ]
    return torch.cat(parts)


def reconstructions(model: Any, images: np.ndarray, *, columns: int = 4, batch_size: int = 64) -> np.ndarray:
    """Originals beside their reconstructions, ``columns`` pairs in a row.

    images: uint8 (N, H, W, C), N >= 1. Returns one uint8 picture in which the left half of each pair is the original.
    """
    originals = to_uint8(images)
    if len(originals) == 0:
        raise ValueError("images: expected at least one image, got none")
    decoded = decode_codes(model, encode_images(model, originals, batch_size), batch_size)
    return image_grid(np.concatenate([originals, decoded], axis=2), columns=columns)


def hybrid_samples(
    model: Any,
    codes: torch.Tensor | np.ndarray,
    n: int = 32,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    hybridise: Iterable[int] | None = None,
    generator: torch.Generator | None = None,
    columns: int = 8,
) -> np.ndarray:
    """Decodes ``n`` hybrid samples (Leeb et al., Structure by Architecture, section 2.2) into one uint8 picture.

    Each latent variable (or group of them) is drawn by itself from the stored ``codes`` (N, D), as
    ``strucfast.samplers.HybridSampler`` does; ``hybridise`` keeps all other groups together.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 sample, got {n}")
    sampler = HybridSampler(as_codes(codes), groups)
    return image_grid(decode_codes(model, sampler.sample(n, generator=generator, hybridise=hybridise)), columns)


@dataclass(frozen=True)
class Traversal:
    """Frames of a latent traversal: row r sweeps latent ``dims[r]`` through ``values[r]``, all else as in ``base``."""

    dims: tuple[int, ...]
    values: np.ndarray  # (rows, steps), the swept variable's value
    frames: np.ndarray  # (rows, steps, H, W, C) uint8
    base: np.ndarray  # (D,)


def traverse(
    model: Any,
    codes: torch.Tensor | np.ndarray,
    *,
    dims: Sequence[int] | None = None,
    steps: int = 9,
    base: torch.Tensor | np.ndarray | None = None,
    max_rows: int | None = None,
) -> Traversal:
    """Sweeps one latent variable per row from its least to its greatest value over the stored codes.

    codes: (N, D) stored codes. dims: the variables to sweep (default all D). base: (D,), the code that holds the other
    variables; by default the stored code nearest to the mean, a point the decoder knows. steps >= 2.
    max_rows: if more variables than that are asked for, keeps those whose sweep changes the picture most
    (mean absolute difference between its two ends), in the order given.
    """
    stored = as_codes(codes)
    latent_dim = stored.shape[1]
    dims = list(range(latent_dim)) if dims is None else [int(dim) for dim in dims]
    if not dims or any(not 0 <= dim < latent_dim for dim in dims):
        raise ValueError(f"dims: expected latent variables in 0..{latent_dim - 1}, at least one, got {dims}")
    if steps < 2:
        raise ValueError(f"steps: expected at least 2, got {steps}")
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows: expected at least 1, got {max_rows}")
    if base is None:
        held = stored[(stored - stored.mean(0)).square().sum(1).argmin()]
    else:
        held = torch.as_tensor(base).detach().to("cpu", torch.float32)
        if tuple(held.shape) != (latent_dim,):
            raise ValueError(f"base: expected shape ({latent_dim},), got {tuple(held.shape)}")
    low, high = stored.amin(0), stored.amax(0)

    def sweep(rows: Sequence[int], count: int) -> tuple[torch.Tensor, np.ndarray]:
        values = torch.stack([torch.linspace(float(low[dim]), float(high[dim]), count) for dim in rows])
        points = held.expand(len(rows), count, latent_dim).clone()
        for row, dim in enumerate(rows):
            points[row, :, dim] = values[row]
        frames = decode_codes(model, points.flatten(0, 1))
        return values, frames.reshape(len(rows), count, *frames.shape[1:])

    if max_rows is not None and len(dims) > max_rows:
        ends = sweep(dims, 2)[1].astype(np.int16)
        change = np.abs(ends[:, 1] - ends[:, 0]).mean(axis=(1, 2, 3))
        kept = sorted(np.argsort(-change, kind="stable")[:max_rows])
        dims = [dims[row] for row in kept]
    values, frames = sweep(dims, steps)
    return Traversal(tuple(dims), values.numpy(), frames, held.numpy())


def traversals(
    model: Any,
    codes: torch.Tensor | np.ndarray,
    *,
    dims: Sequence[int] | None = None,
    steps: int = 9,
    base: torch.Tensor | np.ndarray | None = None,
    labels: Sequence[str] | None = None,
    max_rows: int | None = 32,
) -> Figure:
    """A labelled figure of :func:`traverse`: one row per latent variable, left its least value, right its greatest.

    labels: one name per latent variable (D of them; default "z0", "z1", ...).
    """
    from matplotlib.figure import Figure

    result = traverse(model, codes, dims=dims, steps=steps, base=base, max_rows=max_rows)
    if labels is not None and len(labels) != len(result.base):
        raise ValueError(f"labels: expected {len(result.base)} names, one per latent variable, got {len(labels)}")
    rows = len(result.dims)
    figure = Figure(figsize=(0.9 + 0.64 * steps, 0.8 * rows + 0.3), layout="constrained")
    for row, axes in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        strip = image_grid(result.frames[row], columns=steps)
        axes.imshow(np.repeat(strip, 3, axis=2) if strip.shape[2] == 1 else strip, interpolation="nearest")
        dim = result.dims[row]
        label = f"z{dim}" if labels is None else labels[dim]
        axes.set_ylabel(label, rotation=0, ha="right", va="center", parse_math=False)
        axes.set_xticks([0, strip.shape[1] - 1], [f"{result.values[row, 0]:.2g}", f"{result.values[row, -1]:.2g}"])
        axes.set_yticks([])
        axes.tick_params(length=0, labelsize=7)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure
