"""MIG of 12 codes and Shapes3D's six factors, 20 bins: disentanglement_lib's formulation, our numpy fallback, ours."""

import numpy as np
import pytest
import torch

from benchmarks.baselines import mig as baseline
from strucfast import _native
from strucfast.data import Shapes3D
from strucfast.metrics import _histogram, mig


def fallback(codes, factors):
    host, _histogram.host = _histogram.host, lambda: None
    try:
        return mig(codes, factors)
    finally:
        _histogram.host = host


@pytest.mark.parametrize("kind", ["continuous", "on a grid"])
@pytest.mark.parametrize("count", [10_000, 100_000])
def test_mig(compare, count, kind):
    _native.host()
    rng = np.random.default_rng(0)
    factors = Shapes3D().factors(rng.choice(480_000, count, replace=False))
    codes = factors @ rng.normal(size=(6, 12)) + rng.normal(size=(count, 12))
    if kind == "on a grid":
        codes = np.tile(factors, 2)
    codes = codes.astype(np.float32)
    # numpy would make float32 edges for float32 codes.
    wide = codes.astype(np.float64)
    assert mig(codes, factors).score == pytest.approx(baseline.mig(wide, factors), abs=1e-12)
    providers = {
        "strucfast": lambda: mig(codes, factors),
        "numpy": lambda: fallback(codes, factors),
        "disentanglement_lib": lambda: baseline.mig(wide, factors),
    }
    compare("mig", f"({count},12) {kind}", "forward", torch.float32, "contiguous", providers)
