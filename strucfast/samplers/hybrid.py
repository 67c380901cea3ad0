"""Hybrid sampling: new codes from the marginals of stored ones."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch


class HybridSampler:
    """Draws every latent variable independently, uniformly from its stored values (SAE paper, section 2.2).

    From N stored vectors it reaches up to N^d codes whose marginals are those of the data, for any model; it is exact
    where the variables are independent. The paper stores N = 128 vectors of the training set (:meth:`store`).

    Args:
        codes: (N,D) stored code vectors, torch or numpy, finite floating point.
        groups: lists of code dims that are drawn together, one list per variable, each dim in exactly one of them;
            None draws every dim by itself.

    Raises:
        TypeError: codes or groups of the wrong type. ValueError: no code, values that are not finite, or groups that
            overlap or leave a dim out.
    """

    def __init__(self, codes: torch.Tensor | np.ndarray, groups: Sequence[Sequence[int]] | None = None) -> None:
        self.codes = _as_codes(codes)
        dims = self.codes.shape[1]
        self.groups = [[dim] for dim in range(dims)] if groups is None else [list(group) for group in groups]
        flat = [dim for group in self.groups for dim in group]
        if sorted(flat) != list(range(dims)) or not all(self.groups):
            raise ValueError(f"groups must hold every dim of 0..{dims - 1} exactly once, got {self.groups}")
        group_of_dim = torch.empty(dims, dtype=torch.long)
        for number, group in enumerate(self.groups):
            group_of_dim[group] = number
        self._group_of_dim = group_of_dim.to(self.codes.device)

    @classmethod
    def store(
        cls,
        codes: torch.Tensor | np.ndarray,
        groups: Sequence[Sequence[int]] | None = None,
        *,
        num_stored: int = 128,
        generator: torch.Generator | None = None,
    ) -> "HybridSampler":
        """Sampler over ``num_stored`` (at most all) of ``codes``, drawn uniformly without replacement."""
        if num_stored < 1:
            raise ValueError(f"num_stored must be >= 1, got {num_stored}")
        codes = _as_codes(codes)
        device = generator.device if generator is not None else codes.device
        chosen = torch.randperm(codes.shape[0], generator=generator, device=device)[:num_stored]
        return cls(codes[chosen.to(codes.device)], groups)

    def sample(
        self, n: int, generator: torch.Generator | None = None, hybridise: Iterable[int] | None = None
    ) -> torch.Tensor:
        """Draw n codes.

        Args:
            n: number of codes, >= 0. generator: source of randomness, on any device.
            hybridise: numbers of the groups to draw independently; all others stay together, from one stored vector
                per sample (controllable sampling, SAE paper, figure 6a). None hybridises every group.

        Returns:
            (n, D) in the codes' dtype and on their device.
        """
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n must be an int, got {type(n).__name__}")
        if n < 0:
            raise ValueError(f"n must be >= 0, got {n}")
        count = len(self.groups)
        chosen = list(range(count)) if hybridise is None else sorted(set(hybridise))
        if not all(isinstance(g, int) and 0 <= g < count for g in chosen):
            raise ValueError(f"hybridise must hold group numbers in 0..{count - 1}, got {chosen}")
        device = generator.device if generator is not None else self.codes.device
        # Column 0 is the vector of the groups that stay together, so that a seed keeps them whatever is hybridised.
        rows = torch.randint(self.codes.shape[0], (n, count + 1), generator=generator, device=device)
        rows = rows.to(self.codes.device)
        column = torch.zeros(count, dtype=torch.long, device=rows.device)
        column[chosen] = torch.tensor(chosen, dtype=torch.long, device=rows.device) + 1
        return self.codes.gather(0, rows[:, column[self._group_of_dim]])


def _as_codes(codes: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Checked (N,D) tensor of codes."""
    codes = torch.as_tensor(codes).detach().clone()
    if not codes.is_floating_point():
        raise TypeError(f"codes must be floating point, got {codes.dtype}")
    if codes.dim() != 2 or 0 in codes.shape:
        raise ValueError(f"codes must have shape (N, D) with N, D >= 1, got {tuple(codes.shape)}")
    if not torch.isfinite(codes).all():
        raise ValueError("codes must be finite, got NaN or infinity")
    return codes
