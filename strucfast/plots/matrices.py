"""Heat maps over latents and factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def normalised_information(mutual_information: Any, factor_entropy: Any) -> np.ndarray:
    """I(z_j; v_k) / H(v_k) as (D, K) in [0, 1]; a constant factor (entropy 0) gives 0: it has nothing to tell."""
    information = np.asarray(mutual_information, dtype=np.float64)
    entropy = np.asarray(factor_entropy, dtype=np.float64)
    if information.ndim != 2 or entropy.shape != information.shape[1:]:
        raise ValueError(
            "mutual_information, factor_entropy: expected shapes (D, K) and (K,), "
            f"got {information.shape} and {entropy.shape}"
        )
    return np.divide(information, entropy, out=np.zeros_like(information), where=entropy > 0).clip(0.0, 1.0)


def mutual_information_matrix(
    mutual_information: Any,
    factor_entropy: Any,
    *,
    factor_names: Sequence[str] | None = None,
    latent_names: Sequence[str] | None = None,
) -> Figure:
    """Heat map of I(latent; factor) / H(factor), rows latents, columns factors, the share of the factor in each cell.

    mutual_information (D, K) and factor_entropy (K,) in the same unit, as ``strucfast.metrics.mig`` returns them.
    """
    from matplotlib.figure import Figure

    shares = normalised_information(mutual_information, factor_entropy)
    rows, columns = shares.shape
    latent_names = [f"z{row}" for row in range(rows)] if latent_names is None else list(latent_names)
    factor_names = [f"v{column}" for column in range(columns)] if factor_names is None else list(factor_names)
    for name, names, count in (("latent_names", latent_names, rows), ("factor_names", factor_names, columns)):
        if len(names) != count:
            raise ValueError(f"{name}: expected {count} names, got {len(names)}")
    figure = Figure(figsize=(1.6 + 0.8 * columns, 1.2 + 0.35 * rows), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(columns), factor_names, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(range(rows), latent_names, parse_math=False)
    axes.set_xlabel("factor of variation")
    axes.set_ylabel("latent variable")
    for row in range(rows):
        for column in range(columns):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{share:.2f}",
                ha="center",
                va="center",
                size=8,
                color="white" if share > 0.55 else "black",
            )
    figure.colorbar(image, ax=axes, label="I(latent; factor) / H(factor)")
    return figure
