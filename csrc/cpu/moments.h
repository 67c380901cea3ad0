#pragma once
#include <cstdint>

#include "../common/simd.h"

// Mean and squared deviations for the normalising kernels, never as E[x^2] - E[x]^2.
namespace strucfast {
namespace {

// One cache line of the compute type.
template <typename C>
constexpr int kLanes = 64 / sizeof(C);

// Asks for the cache line of `to` that a later tile needs, so that memory works while this tile computes.
template <typename T>
SF_INLINE void ask_for(const T* to) {
#if defined(__GNUC__)
  __builtin_prefetch(to, 0, 2);
#else
  (void)to;
#endif
}

struct Moments {
  double count = 0, mean = 0, squares = 0;

  void merge(double other_count, double other_mean, double other_squares) {
    if (other_count == 0) return;
    const double total = count + other_count, delta = other_mean - mean;
    mean += delta * other_count / total;
    squares += other_squares + delta * delta * count * other_count / total;
    count = total;
  }
};

// Mean (as first + *shifted_mean) and sum of squared deviations of a chunk that stays in L1: two passes, both relative
// to `first`, a member of the slice, so that a large common offset costs no digits.
template <typename C>
SF_CLONES void chunk_moments(const C* SF_RESTRICT x, int64_t size, C first, C* shifted_mean, C* squares) {
  // Four vectors of partial sums: one would wait for the latency of each addition (2 ns a vector of 7).
  constexpr int64_t width = 4 * kLanes<C>;
  const int64_t whole = size / width * width;
  C part[width];
  C sum = 0, sum_squares = 0;
#pragma omp simd
  for (int64_t l = 0; l < width; ++l) part[l] = 0;
  for (int64_t i = 0; i < whole; i += width) {
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) part[l] += x[i + l] - first;
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t l = 0; l < width; ++l) sum += part[l];
  for (int64_t i = whole; i < size; ++i) sum += x[i] - first;
  const C mean = sum / static_cast<C>(size);
#pragma omp simd
  for (int64_t l = 0; l < width; ++l) part[l] = 0;
  for (int64_t i = 0; i < whole; i += width) {
#pragma omp simd
    for (int64_t l = 0; l < width; ++l) {
      const C d = (x[i + l] - first) - mean;
      part[l] += d * d;
    }
  }
#pragma omp simd reduction(+ : sum_squares)
  for (int64_t l = 0; l < width; ++l) sum_squares += part[l];
  for (int64_t i = whole; i < size; ++i) {
    const C d = (x[i] - first) - mean;
    sum_squares += d * d;
  }
  *shifted_mean = mean;
  *squares = sum_squares;
}

// The same for one cache line of columns of a tile, from row to row, merged into the running moments of `seen` earlier
// rows (Chan, Golub, LeVeque 1979).
template <typename C, bool kFull>
SF_INLINE void column_moments_lanes(const C* SF_RESTRICT x, int64_t stride, int64_t rows, int64_t width,
                                    const C* SF_RESTRICT first_of, int64_t seen, C* SF_RESTRICT mean,
                                    C* SF_RESTRICT squares) {
  const int64_t lanes = kFull ? kLanes<C> : width;
  C first[kLanes<C>], chunk_mean[kLanes<C>], even[kLanes<C>], odd[kLanes<C>];
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    first[j] = first_of[j];
    even[j] = odd[j] = 0;
  }
  const int64_t pairs = rows / 2;
  for (int64_t r = 0; r < pairs; ++r) {
    const C *const x0 = x + 2 * r * stride, *const x1 = x0 + stride;
#pragma omp simd
    for (int64_t j = 0; j < lanes; ++j) {
      even[j] += x0[j] - first[j];
      odd[j] += x1[j] - first[j];
    }
  }
  const bool last = rows % 2 != 0;
  const C* const xl = x + (rows - 1) * stride;
  const C each = C(1) / static_cast<C>(rows);
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    chunk_mean[j] = (even[j] + odd[j] + (last ? xl[j] - first[j] : C(0))) * each;
    even[j] = odd[j] = 0;
  }
  for (int64_t r = 0; r < pairs; ++r) {
    const C *const x0 = x + 2 * r * stride, *const x1 = x0 + stride;
#pragma omp simd
    for (int64_t j = 0; j < lanes; ++j) {
      const C d0 = (x0[j] - first[j]) - chunk_mean[j], d1 = (x1[j] - first[j]) - chunk_mean[j];
      even[j] += d0 * d0;
      odd[j] += d1 * d1;
    }
  }
  const C part = static_cast<C>(rows) / static_cast<C>(seen + rows);
  const C cross = part * static_cast<C>(seen);
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    const C d = last ? (xl[j] - first[j]) - chunk_mean[j] : C(0);
    const C delta = chunk_mean[j] - mean[j];
    mean[j] += delta * part;
    squares[j] += even[j] + odd[j] + d * d + delta * delta * cross;
  }
}

template <typename C>
SF_CLONES void column_moments(const C* x, int64_t stride, int64_t rows, int64_t cols, const C* first, int64_t seen,
                              C* mean, C* squares) {
  int64_t j = 0;
  for (; j + kLanes<C> <= cols; j += kLanes<C>) {
    column_moments_lanes<C, true>(x + j, stride, rows, kLanes<C>, first + j, seen, mean + j, squares + j);
  }
  if (j < cols) column_moments_lanes<C, false>(x + j, stride, rows, cols - j, first + j, seen, mean + j, squares + j);
}

}  // namespace
}  // namespace strucfast
