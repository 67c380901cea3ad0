"""The boosting kernel at every x86-64 level that this CPU has, against scikit-learn's raw predictions."""

import ctypes

import numpy as np
import pytest
from helpers.isa import LEVELS, compile_level
from sklearn.ensemble import GradientBoostingClassifier

from strucfast.metrics._boosting import bin_features

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


@pytest.fixture(scope="module", params=LEVELS)
def fit(request, tmp_path_factory):
    return compile_level(
        request.param,
        WRAPPER,
        ("boosting.cpp",),
        tmp_path_factory.mktemp("boosting"),
        elsewhere="tests/metrics/test_boosting.py covers",
    ).fit


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
