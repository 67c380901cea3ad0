"""Explicitness of 12 codes and Shapes3D's six factors, 10,000 / 5,000 points, against scikit-learn's regressions.

Perfect and mlp codes only with STRUCFAST_FULL=1: scikit-learn takes 3 s a kind.
"""

import time

import numpy as np
import pytest
import torch

from benchmarks._timing import full
from benchmarks.baselines import explicitness as baseline
from benchmarks.bench_boosting import KINDS, halves, problem
from strucfast.metrics import explicitness


@pytest.mark.parametrize("kind", KINDS if full() else ("noisy", "rotated"))
def test_all_factors(compare, kind):
    arrays = halves(*problem(kind))
    once, alternatives = {}, {"scikit-learn": baseline.explicitness}
    alternatives["scikit-learn, one BLAS thread"] = baseline.explicitness_one_blas_thread
    for name, function in alternatives.items():
        began = time.perf_counter()
        areas = function(*arrays)
        once[name] = (time.perf_counter() - began) * 1e3
    for ours, theirs in zip(explicitness(*arrays).per_class, areas):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    providers = {"strucfast": lambda: explicitness(*arrays)}
    case, layout = f"{kind}, 6 factors (57 classes)", "contiguous"
    compare("explicitness", case, "forward", torch.float32, layout, providers, seconds=1.0, once=once)
