#pragma once
#include <cstdint>
#include <functional>

// Gradient boosting of depth-3 regression trees, as scikit-learn's GradientBoostingClassifier and -Regressor grow them,
// for all outputs of all targets at once: an output is a class of a factor (multinomial deviance) or a continuous factor
// (squared error). Sixteen outputs share a vector; every one has trees of its own.
//
// A feature's values enter as ranks. Splits are found by walking the rows in the order of each feature with running sums
// per tree node, so that one bin per distinct value costs no memory; features with few bins are tried at bin ends only.
namespace strucfast {

constexpr int64_t kBoostLanes = 16;
constexpr int64_t kBoostInner = 7;
constexpr int64_t kBoostLeaves = 8;

struct BoostingJob {
  int64_t rows, features, outputs, groups;
  // values (features, most bins): each bin's greatest value; only bins[f] of a row are used.
  const int64_t* bins;
  const float* low_values;
  const float* high_values;
  int64_t most_bins;
  // ranks (rows, features) in [0, bins[f]); order (features, rows) by rank; starts (features, most_bins + 1): where each
  // bin starts in order.
  const int32_t* ranks;
  const int32_t* order;
  const int32_t* starts;
  // Multinomial: labels (rows, targets), the classes of target q are outputs first[q] .. first[q + 1] - 1.
  // Squared error: labels is null, wanted (rows, outputs).
  int64_t targets;
  const int32_t* labels;
  const int32_t* first;
  const float* wanted;
  // Initial raw prediction of each output.
  const float* initial;
  int64_t rounds;
  float learning_rate;
  // Of the order in which nodes ask features that split equally well.
  uint64_t seed;
  // Unseen rows (test_rows, features), predicted along the way.
  int64_t test_rows;
  const float* test_values;
};

// Where everything goes; groups = ceil(outputs / 16), allocated by the caller.
struct BoostingState {
  // (groups, rows, 16) and (groups, test_rows, 16)
  float* raw;
  float* test_raw;
  float* residual;
  // (groups, rows, 16)
  uint8_t* node;
  // (groups, features, 4, 16) gains and ranks of the best split of each node
  float* gains;
  int32_t* splits;
  // (features, groups * 16), added to: decrease of squared error by feature, over rows
  double* importance;
};

// Calls task(0) .. task(count - 1), in any order and on any threads, and returns when all are done.
using TaskRunner = std::function<void(int64_t count, const std::function<void(int64_t)>& task)>;

// Returns false if a sum became non-finite. The result does not depend on the threads.
bool boost(const BoostingJob& job, const BoostingState& state, const TaskRunner& run);

}  // namespace strucfast
