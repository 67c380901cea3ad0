"""The ISA-VAE's prior, with fixed or learnt exponents."""

from collections.abc import Sequence

import torch
from torch import nn

from ..lp_nested_isa import LpNestedISA, check_sizes, unit_variance_scale
from ._base import Prior, placed, positive_parameter


class LpNestedISAPrior(Prior):
    """Independent subspaces under an Lp-nested prior (ISA-VAE paper, equations 6 to 11 and appendix A.2).

    Args:
        sizes: sizes of the K subspaces; dim is their sum. dSprites in the paper: five of 4.
        p0: exponent of the root, never learnt.
        p: exponents of the subspaces, a number or K of them; None is 2.2 (the paper's dSprites value), or 2.0, where
            learning starts in appendix A.2.
        scale: s_k in units of z^p0, a number or K of them. None gives every coordinate variance 1 at the initial
            exponents; the authors' code uses 1.
        learn_p: learn the p_k, each its own, as ``exp(log_p)``. The scale stays what it was at the start, so the
            variance of a subspace moves with its exponent (from 1.00 at p_k = 2.0 to 1.08 at 2.2 for p0 = 2.1,
            n_k = 4): the exponent shapes tails and size together, as in the paper.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        p0: float = 2.1,
        p: float | Sequence[float] | None = None,
        scale: float | Sequence[float] | None = None,
        learn_p: bool = False,
    ) -> None:
        sizes = check_sizes(sizes)
        super().__init__(sum(sizes))
        self.sizes = sizes
        count = len(sizes)
        if p is None:
            p = 2.0 if learn_p else 2.2
        root, exponents = positive_parameter("p0", p0), positive_parameter("p", p, count)
        if scale is None:
            scale = unit_variance_scale(sizes, root.double(), exponents.double())
        self.register_buffer("p0", placed(root))
        self.register_buffer("scale", placed(positive_parameter("scale", scale, count)))
        self.learn_p = learn_p
        if learn_p:
            self.log_p = nn.Parameter(placed(exponents.log()))
        else:
            self.register_buffer("p", placed(exponents))

    def exponents(self) -> torch.Tensor:
        """The p_k of now, (K,)."""
        return self.log_p.exp() if self.learn_p else self.p

    def forward(self) -> LpNestedISA:
        return LpNestedISA(self.sizes, self.p0, self.exponents(), self.scale, validate_args=False)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, learn_p={self.learn_p}"
