#pragma once
#include "moments.h"

// Sums over short rows. Each row leaves a cache line of partial sums, and the lines of a batch of rows are added up
// together: .8 ns each instead of 2.6. A row's sum does not depend on its place in the batch.
namespace strucfast {
namespace {

constexpr int64_t kBatch = 16;

// `omp simd` keeps gcc from unrolling a short loop into scalars first (25 ns a row).
template <typename C>
SF_INLINE void copy_lanes(const C* SF_RESTRICT from, C* SF_RESTRICT to) {
#pragma omp simd
  for (int64_t l = 0; l < kLanes<C>; ++l) to[l] = from[l];
}

// Sums of each of kLines lines.
template <int64_t kLines = kBatch, typename C>
SF_INLINE void sum_lines(const C* SF_RESTRICT lines, C* SF_RESTRICT sums) {
  constexpr int64_t lanes = kLanes<C>;
  C fours[4 * kLines];
  for (int64_t r = 0; r < kLines; ++r) {
#pragma omp simd
    for (int64_t l = 0; l < 4; ++l) {
      C sum = lines[r * lanes + l] + lines[r * lanes + 4 + l];
      if (lanes == 16) sum += lines[r * lanes + 8 % lanes + l] + lines[r * lanes + 12 % lanes + l];
      fours[4 * r + l] = sum;
    }
  }
#pragma omp simd
  for (int64_t r = 0; r < kLines; ++r) {
    sums[r] = (fours[4 * r] + fours[4 * r + 1]) + (fours[4 * r + 2] + fours[4 * r + 3]);
  }
}

}  // namespace
}  // namespace strucfast
