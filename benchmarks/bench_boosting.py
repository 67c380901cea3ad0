"""DCI of 12 codes and Shapes3D's six factors, 10,000 / 5,000 points, against gradient boosting that people use.

scikit-learn takes 150 s a case, so by default it is timed on one factor (shape, 4 classes) with ours on the same one.
XGBoost and LightGBM (pip install 'strucfast[bench]') are timed once, on all factors, by default with the rotated codes;
what they find is printed beside ours. HistGradientBoosting is what people turn to as well; it has another meaning
(second-order gain, leaves without a depth limit) and no impurity importance.

Only with STRUCFAST_FULL=1: scikit-learn on all six factors, once, and every kind of codes, with XGBoost and LightGBM.
"""

import time

import numpy as np
import pytest
import torch

from benchmarks import _peers
from benchmarks._timing import full
from benchmarks.baselines import boosting as baseline
from strucfast import _native
from strucfast.data import Shapes3D
from strucfast.metrics import dci

KINDS = ("perfect", "noisy", "rotated", "mlp")
TRAIN, TEST = 10_000, 5_000


def problem(kind):
    """Codes (N, 12) of four kinds, and the factors (N, 6)."""
    rng = np.random.default_rng(0)
    factors = Shapes3D().factors(rng.choice(480_000, TRAIN + TEST, replace=False))
    extra = rng.integers(0, 10, (TRAIN + TEST, 6)) if kind == "perfect" else rng.normal(size=(TRAIN + TEST, 6))
    codes = np.concatenate([factors, extra], axis=1).astype(float)
    codes = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    if kind == "noisy":
        codes += 0.1 * rng.normal(size=codes.shape)
    elif kind == "rotated":
        codes = codes @ np.linalg.qr(rng.normal(size=(12, 12)))[0]
    elif kind == "mlp":
        codes = np.tanh(codes @ rng.normal(size=(12, 32))) @ rng.normal(size=(32, 12))
    return codes.astype(np.float32), factors


def halves(codes, factors):
    return codes[:TRAIN], factors[:TRAIN], codes[TRAIN:], factors[TRAIN:]


def once(function, *arguments):
    """What ``function`` returns, and the milliseconds that it took."""
    began = time.perf_counter()
    found = function(*arguments)
    return found, (time.perf_counter() - began) * 1e3


@pytest.mark.parametrize("kind", KINDS if full() else ("noisy", "rotated"))
def test_all_factors(compare, kind, capsys):
    _native.host()
    arrays = halves(*problem(kind))
    found = {"strucfast": dci(*arrays), "strucfast, 256 bins": dci(*arrays, bins=256)}
    times = {}
    if full():
        found["scikit-learn"], times["scikit-learn"] = once(baseline.dci, *arrays)
        for name, allowed in (("strucfast", 0.002), ("strucfast, 256 bins", 0.008)):
            assert found[name].disentanglement == pytest.approx(found["scikit-learn"].disentanglement, abs=allowed)
            assert found[name].completeness == pytest.approx(found["scikit-learn"].completeness, abs=allowed)
    if full() or kind == "rotated":
        for name, function in (("XGBoost", baseline.xgboost_dci), ("LightGBM", baseline.lightgbm_dci)):
            module = _peers.find(name.lower())
            if module is not None:
                found[name], times[name] = once(function, module, *arrays, torch.get_num_threads())
    truth = "scikit-learn" if "scikit-learn" in found else "strucfast"
    parts = []
    for name, result in found.items():
        off = abs(result.disentanglement - found[truth].disentanglement)
        parts.append(f"{name} D {result.disentanglement:.4f} (off by {off:.4f}), C {result.completeness:.4f}")
    with capsys.disabled():
        print(f"\ndci, {kind}, beside {truth}: " + "; ".join(parts))
    providers = {"strucfast": lambda: dci(*arrays), "strucfast, 256 bins": lambda: dci(*arrays, bins=256)}
    case = f"{kind}, 6 factors (57 classes)"
    scores = {name: {"disentanglement": round(result.disentanglement, 5)} for name, result in found.items()}
    compare("dci", case, "forward", torch.float32, "contiguous", providers, extra=scores, once=times)


def test_one_factor(compare):
    arrays = halves(*problem("noisy"))
    arrays = tuple(a if a.shape[1] == 12 else a[:, 4:5] for a in arrays)
    times = {}
    theirs, times["scikit-learn"] = once(baseline.dci, *arrays)
    _, times["HistGradientBoosting"] = once(baseline.hist_boosting, *arrays)
    ours = dci(*arrays)
    np.testing.assert_allclose(ours.importance, theirs.importance, atol=0.005)
    providers = {"strucfast": lambda: dci(*arrays)}
    case = "noisy, one factor (4 classes)"
    compare("dci", case, "forward", torch.float32, "contiguous", providers, once=times)
