"""MIG of 12 codes and Shapes3D's six factors, 20 bins, against disentanglement_lib's formulation."""

import numpy as np
import pytest
from baselines import mig as baseline

from strucfast import _native
from strucfast.data import Shapes3D
from strucfast.metrics import _histogram, mig


@pytest.fixture(params=[10_000, 100_000], ids=["10k", "100k"])
def arrays(request):
    rng = np.random.default_rng(0)
    factors = Shapes3D().factors(rng.choice(480_000, request.param, replace=False))
    mix = rng.normal(size=(6, 12))
    codes = (factors @ mix + rng.normal(size=(len(factors), 12))).astype(np.float32)
    return codes, factors


@pytest.mark.benchmark(group="mig")
def test_host_kernel(benchmark, arrays):
    _native.host()
    result = benchmark(mig, *arrays)
    assert result.score == pytest.approx(baseline.mig(arrays[0].astype(np.float64), arrays[1]), abs=1e-12)


@pytest.mark.benchmark(group="mig")
def test_numpy_fallback(benchmark, arrays, monkeypatch):
    monkeypatch.setattr(_histogram, "host", lambda: None)
    benchmark.pedantic(mig, arrays, rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="mig")
def test_disentanglement_lib(benchmark, arrays):
    benchmark.pedantic(baseline.mig, arrays, rounds=3, warmup_rounds=1)
