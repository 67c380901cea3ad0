#include "../../cpu/boosting.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "arrays.h"
#include "bind.h"
#include "team.h"

namespace strucfast {
namespace {

// Copies (groups, rows, 16) to (rows, outputs).
Array<float> by_row(const std::vector<float>& raw, int64_t rows, int64_t outputs) {
  Array<float> out({rows, outputs});
  float* data = out.mutable_data();
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t w = 0; w < outputs; ++w)
      data[row * outputs + w] = raw[((w / kBoostLanes) * rows + row) * kBoostLanes + w % kBoostLanes];
  return out;
}

void check_range(const char* name, const Array<int32_t>& values, int64_t limit) {
  const int32_t* data = values.data();
  for (py::ssize_t i = 0; i < values.size(); ++i)
    if (data[i] < 0 || data[i] >= limit)
      throw py::value_error(std::string(name) + ": expected values in [0, " + std::to_string(limit) + "), got " +
                            std::to_string(data[i]));
}

py::tuple boost_py(const Array<int32_t>& ranks, const Array<int32_t>& order, const Array<int32_t>& starts,
                   const Array<int64_t>& bins, const Array<float>& low_values, const Array<float>& high_values,
                   const Array<float>& initial, const std::optional<Array<int32_t>>& labels,
                   const std::optional<Array<int32_t>>& first, const std::optional<Array<float>>& wanted,
                   const Array<float>& test_values, int64_t rounds, float learning_rate, uint64_t seed,
                   int64_t threads) {
  check_shape("ranks", ranks, {-1, -1});
  BoostingJob job{};
  job.rows = ranks.shape(0);
  job.features = ranks.shape(1);
  check_shape("order", order, {job.features, job.rows});
  check_shape("low_values", low_values, {job.features, -1});
  job.most_bins = low_values.shape(1);
  check_shape("high_values", high_values, {job.features, job.most_bins});
  check_shape("starts", starts, {job.features, job.most_bins + 1});
  check_shape("bins", bins, {job.features});
  check_shape("initial", initial, {-1});
  check_shape("test_values", test_values, {-1, job.features});
  job.outputs = initial.shape(0);
  // Counts are kept in float32.
  if (job.rows < 1 || job.rows > (1 << 24)) throw py::value_error("ranks: expected 1 to 2^24 rows");
  for (int64_t f = 0; f < job.features; ++f) {
    const int64_t count = bins.data()[f];
    if (count < 1 || count > job.most_bins) throw py::value_error("bins: a number does not fit low_values");
    const int32_t* own = starts.data() + f * (job.most_bins + 1);
    for (int64_t b = 0; b < count; ++b)
      if (own[b] < 0 || own[b + 1] < own[b] || own[b + 1] > job.rows)
        throw py::value_error("starts: expected growing numbers up to the number of rows");
  }
  check_range("order", order, job.rows);
  check_range("ranks", ranks, job.most_bins);
  if (labels.has_value() != first.has_value() || labels.has_value() == wanted.has_value())
    throw py::value_error("labels and first, or wanted: expected one of the two");
  if (labels) {
    check_shape("first", *first, {-1});
    job.targets = first->shape(0) - 1;
    check_shape("labels", *labels, {job.rows, job.targets});
    for (int64_t q = 0; q < job.targets; ++q) {
      const int32_t begin = first->data()[q], end = first->data()[q + 1];
      if (begin < 0 || end <= begin || end > job.outputs)
        throw py::value_error("first: expected growing numbers up to the outputs");
      for (int64_t row = 0; row < job.rows; ++row) {
        const int32_t label = labels->data()[row * job.targets + q];
        if (label < 0 || label >= end - begin) throw py::value_error("labels: a value lies outside its target's classes");
      }
    }
    job.labels = labels->data();
    job.first = first->data();
  } else {
    check_shape("wanted", *wanted, {job.rows, job.outputs});
    job.wanted = wanted->data();
  }
  job.groups = (job.outputs + kBoostLanes - 1) / kBoostLanes;
  job.bins = bins.data();
  job.low_values = low_values.data();
  job.high_values = high_values.data();
  job.ranks = ranks.data();
  job.order = order.data();
  job.starts = starts.data();
  job.initial = initial.data();
  job.rounds = rounds;
  job.learning_rate = learning_rate;
  job.seed = seed;
  job.test_rows = test_values.shape(0);
  job.test_values = test_values.data();
  const int64_t width = job.groups * kBoostLanes;
  std::vector<float> raw(width * job.rows), test_raw(width * job.test_rows), residual(width * job.rows);
  std::vector<uint8_t> node(width * job.rows);
  std::vector<float> gains(width * job.features * 4);
  std::vector<int32_t> splits(width * job.features * 4);
  std::vector<double> importance(width * job.features);
  const BoostingState state{raw.data(),  test_raw.data(), residual.data(),  node.data(),
                            gains.data(), splits.data(),   importance.data()};
  bool finite;
  {
    py::gil_scoped_release release;
    Team team(threads);
    finite = boost(job, state, [&](int64_t count, const std::function<void(int64_t)>& task) { team.run(count, task); });
  }
  if (!finite) throw py::value_error("boosting: a sum is not finite");
  Array<double> shares({job.features, job.outputs});
  for (int64_t f = 0; f < job.features; ++f)
    for (int64_t w = 0; w < job.outputs; ++w) shares.mutable_data()[f * job.outputs + w] = importance[f * width + w];
  return py::make_tuple(shares, by_row(raw, job.rows, job.outputs), by_row(test_raw, job.test_rows, job.outputs));
}

}  // namespace

void bind_boosting(py::module_& m) {
  m.def("boost", &boost_py, py::arg("ranks").noconvert(), py::arg("order").noconvert(), py::arg("starts").noconvert(),
        py::arg("bins").noconvert(), py::arg("low_values").noconvert(), py::arg("high_values").noconvert(),
        py::arg("initial").noconvert(), py::arg("labels").noconvert(), py::arg("first").noconvert(),
        py::arg("wanted").noconvert(), py::arg("test_values").noconvert(), py::arg("rounds"), py::arg("learning_rate"),
        py::arg("seed"), py::arg("threads"),
        "Boosts depth-3 trees; returns importance (F, W), raw predictions (N, W) and those of unseen rows (T, W).");
}

}  // namespace strucfast
