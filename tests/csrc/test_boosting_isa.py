"""The boosting kernel at every x86-64 level that this CPU has, against scikit-learn's raw predictions."""

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier

from strucfast.metrics._boosting import bin_features

ROOT = Path(__file__).resolve().parents[2]
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]
# A CPU flag that stands for the level (Linux names).
LEVELS = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512vl"}

WRAPPER = """
#include "csrc/cpu/boosting.h"
#include <vector>
using namespace strucfast;
// One target; the rows fitted are predicted again as unseen ones.
extern "C" int fit(int64_t rows, int64_t features, int64_t classes, int64_t most_bins, int64_t rounds,
                   const int64_t* bins, const float* low, const float* high, const int32_t* ranks,
                   const int32_t* order, const int32_t* starts, const int32_t* labels, const float* initial,
                   const float* values, float* raw, float* test_raw, double* importance) {
  const int32_t first[2] = {0, static_cast<int32_t>(classes)};
  BoostingJob job{};
  job.rows = job.test_rows = rows;
  job.features = features;
  job.outputs = classes;
  job.groups = (classes + kBoostLanes - 1) / kBoostLanes;
  job.bins = bins;
  job.low_values = low;
  job.high_values = high;
  job.most_bins = most_bins;
  job.ranks = ranks;
  job.order = order;
  job.starts = starts;
  job.targets = 1;
  job.labels = labels;
  job.first = first;
  job.initial = initial;
  job.rounds = rounds;
  job.learning_rate = 0.1f;
  job.test_values = values;
  const int64_t width = job.groups * kBoostLanes;
  std::vector<float> residual(width * rows), gains(width * features * 4);
  std::vector<uint8_t> node(width * rows);
  std::vector<int32_t> splits(width * features * 4);
  const BoostingState state{raw, test_raw, residual.data(), node.data(), gains.data(), splits.data(), importance};
  return boost(job, state, [](int64_t count, const std::function<void(int64_t)>& task) {
    for (int64_t i = 0; i < count; ++i) task(i);
  });
}
"""


def cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), ()))


@pytest.fixture(scope="module", params=LEVELS)
def fit(request, tmp_path_factory):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("x86-64 levels exist on x86-64 only; elsewhere tests/metrics/test_boosting.py covers the one build")
    if LEVELS[request.param] not in cpu_flags():
        pytest.skip(f"this CPU cannot run -march={request.param}; run on one with {LEVELS[request.param]}")
    if shutil.which(CXX) is None:
        pytest.skip(f"no C++ compiler {CXX}: install g++ or set CXX")
    folder = tmp_path_factory.mktemp("boosting")
    source, library = folder / "wrapper.cpp", folder / "kernel.so"
    source.write_text(WRAPPER)
    level = [f"-march={request.param}", "-mprefer-vector-width=512", "-DSF_NO_CLONES", "-Wno-psabi", f"-I{ROOT}"]
    files = [str(source), str(ROOT / "csrc/cpu/boosting.cpp")]
    subprocess.run([CXX, *FLAGS, *level, *files, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library)).fit


# Many classes leave small nodes, in which several splits are equally good and rounding chooses.
@pytest.mark.parametrize("classes,ties", [(5, False), (18, True)])
def test_raw_predictions(fit, classes, ties):
    rng = np.random.default_rng(0)
    rows, rounds = 600, 5
    labels = rng.integers(0, classes, rows).astype(np.int32)
    values = np.stack([labels + rng.normal(size=rows), rng.normal(size=rows), labels % 3 + rng.normal(size=rows)], 1)
    values = (np.round(values) if ties else values).astype(np.float32)
    binned = bin_features(values, None)
    width = -(-classes // 16) * 16
    raw, unseen = (np.zeros((width // 16, rows, 16), np.float32) for _ in range(2))
    importance = np.zeros((3, width))
    initial = np.log(np.bincount(labels) / rows).astype(np.float32)
    sizes = (rows, 3, classes, binned.low.shape[1], rounds)
    arrays = (binned.bins, binned.low, binned.high, binned.ranks, binned.order, binned.starts, labels, initial, values)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, raw, unseen, importance)]
    assert fit(*(ctypes.c_int64(size) for size in sizes), *pointers) == 1
    found = raw.transpose(1, 0, 2).reshape(rows, width)[:, :classes]
    model = GradientBoostingClassifier(n_estimators=rounds, random_state=0).fit(values, labels)
    theirs = model.decision_function(values)
    off = np.abs((found - found.mean(1, keepdims=True)) - (theirs - theirs.mean(1, keepdims=True)))
    if classes == 5:
        assert (off.max(axis=1) < 2e-5).mean() > 0.99
    assert np.corrcoef(found.ravel(), theirs.ravel())[0, 1] > 0.999
    np.testing.assert_array_equal(raw, unseen)
    shares = importance.sum(1) / importance.sum()
    np.testing.assert_allclose(shares, model.feature_importances_, atol=0.01)
    assert (importance[:, classes:] == 0).all()
