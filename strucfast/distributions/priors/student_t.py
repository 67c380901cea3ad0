"""The heavy-tailed prior of the decomposition paper."""

from collections.abc import Sequence

import torch
from torch import nn

from ..product_student_t import ProductStudentT
from ._base import Prior, placed, positive_parameter


class StudentTPrior(Prior):
    """Independent Student-t dims around 0 (decomposition paper, section 6.1).

    Args:
        dim: D.
        df: degrees of freedom, a number or D of them; the paper varies it, the standard normal is its limit.
        scale: scale, a number or D of them; the paper's is 1.
        learn: learn each dim's degrees of freedom, as ``exp(log_df)``.
    """

    def __init__(
        self,
        dim: int,
        df: float | Sequence[float] = 5.0,
        scale: float | Sequence[float] = 1.0,
        learn: bool = False,
    ) -> None:
        super().__init__(dim)
        self.learn = learn
        df = positive_parameter("df", df, dim)
        if learn:
            self.log_df = nn.Parameter(placed(df.log()))
        else:
            self.register_buffer("fixed_df", placed(df))
        self.register_buffer("loc", torch.zeros(dim), persistent=False)
        self.register_buffer("scale", placed(positive_parameter("scale", scale, dim)))

    @property
    def df(self) -> torch.Tensor:
        """Degrees of freedom of now, (D,)."""
        return self.log_df.exp() if self.learn else self.fixed_df

    def forward(self) -> ProductStudentT:
        return ProductStudentT(self.df, self.loc, self.scale, validate_args=False)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, learn={self.learn}"
