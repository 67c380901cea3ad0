"""Dispatch asks torch two private questions; when torch moves them, this must fail loudly."""

import torch
from torch.autograd import forward_ad

from strucfast.ops._probes import transform_active


def test_quiet_outside():
    assert transform_active() is False


def test_seen_inside_each_transform():
    seen = []

    def record(x):
        seen.append(transform_active())
        return x * x

    x = torch.ones(2)
    torch.func.vmap(record)(x)
    torch.func.grad(record)(x[0])
    torch.func.jvp(record, (x,), (x,))
    with forward_ad.dual_level():
        record(x)
    assert seen == [True] * 4
    assert transform_active() is False
