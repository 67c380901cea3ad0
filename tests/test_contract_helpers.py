"""The judge of the op contract must accept rounding and refuse what a maximum alone would hide."""

import pytest
import torch
from helpers import contract

from strucfast.ops._registry import Tolerance

TRUTH = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EAGER = TRUTH.float()


def judge(value):
    return contract.judge(value, TRUTH, EAGER, torch.float32, Tolerance())


def test_rounding_is_accepted():
    assert judge(TRUTH.float()).ok


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v + 1e-3 * (torch.arange(1000) == 7),
        lambda v: v * (1 + 2e-5),
        lambda v: v + 1e-5,
        lambda v: v.flip(0),
        lambda v: torch.where(torch.arange(1000) == 3, torch.nan, v),
        lambda v: v[:-1],
        lambda v: torch.zeros_like(v),
    ],
    ids=["one entry", "scaled", "biased", "permuted", "nan", "shape", "zero"],
)
def test_errors_are_refused(spoil):
    assert not judge(spoil(TRUTH.float())).ok


def test_retype_keeps_strides():
    base = torch.randn(4, 6, 5, 8)
    for t in (base[::2, :, 1:], base.permute(0, 2, 3, 1), base[:1].expand(3, 6, 5, 8)):
        low = contract.retype(t, torch.float64)
        assert low.stride() == t.stride() or 0 in t.stride()
        assert torch.equal(low.float(), t)
