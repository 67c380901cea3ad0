#pragma once
#include <cuda_runtime.h>

#include <cstdint>

// What csrc/cpu/boosting.h does, for arrays on a GPU: the same trees up to the order of float sums.
namespace strucfast::cuda {

constexpr int kBoostInner = 7;
constexpr int kBoostLeaves = 8;
// Gains of one level wait in shared memory.
constexpr int kMostFeatures = 1024;

struct BoostingJob {
  int rows, features, outputs, targets;
  // (features, rows): row numbers by value, the sign bit set on the last row of each bin but the last one.
  const int32_t* order;
  // (features, rows): the bin of each row. low, high (features, rows): the least and greatest value of each bin.
  const int32_t* ranks;
  const float* low;
  const float* high;
  // Multinomial: labels (targets, rows); target q has the outputs first[q] to first[q + 1]. Squared error: labels is
  // null, wanted (outputs, rows).
  const int32_t* labels;
  const int32_t* first;
  const float* wanted;
  // (outputs): what a leaf's Newton step is multiplied by.
  const float* factor;
  uint64_t seed;
  int64_t test_rows;
  // (features, test_rows)
  const float* test_values;
  // (outputs, rows) and (outputs, test_rows): raw predictions, updated.
  float* raw;
  float* test_raw;
  // (outputs, rows), scratch.
  float* residual;
  uint8_t* node;
  // (rounds, outputs, 7): decrease of squared error of each split and its feature; 0 and -1 where a node stays whole.
  float* gains;
  int32_t* chosen;
};

// Two launches a round, none of which waits for the host.
cudaError_t boost(const BoostingJob& job, int64_t rounds, cudaStream_t stream);

}  // namespace strucfast::cuda
