#include "histogram.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "../common/simd.h"

namespace strucfast {
namespace {

typedef double Doubles __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(32)));
constexpr int64_t kLanes = 8;
// Above this many bins a binary search beats counting the edges below a value.
constexpr int64_t kCountedBins = 64;

// Rows are scanned 16 at a time against 16 * columns running extrema: full vectors for any number of columns.
constexpr int64_t kRows = 16;

template <class T>
SF_INLINE bool column_range_any(const T* SF_RESTRICT values, int64_t begin, int64_t end, int64_t columns,
                                T* SF_RESTRICT low, T* SF_RESTRICT high, T* SF_RESTRICT scratch) {
  const int64_t width = kRows * columns;
  T* SF_RESTRICT lowest = scratch;
  T* SF_RESTRICT highest = scratch + width;
  T* SF_RESTRICT poison = scratch + 2 * width;
  for (int64_t j = 0; j < width; ++j) {
    lowest[j] = highest[j] = values[begin * columns + j % columns];
    poison[j] = 0;
  }
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) {
    const T* SF_RESTRICT x = values + row * columns;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      lowest[j] = x[j] < lowest[j] ? x[j] : lowest[j];
      highest[j] = x[j] > highest[j] ? x[j] : highest[j];
      // Zero, unless the value is NaN or infinite.
      if (std::is_floating_point<T>::value) poison[j] += x[j] - x[j];
    }
  }
  for (; row < end; ++row) {
    const T* SF_RESTRICT x = values + row * columns;
    for (int64_t j = 0; j < columns; ++j) {
      lowest[j] = std::min(lowest[j], x[j]);
      highest[j] = std::max(highest[j], x[j]);
      if (std::is_floating_point<T>::value) poison[j] += x[j] - x[j];
    }
  }
  T poisoned = 0;
  for (int64_t j = 0; j < width; ++j) poisoned += poison[j];
  for (int64_t j = 0; j < columns; ++j) {
    low[j] = lowest[j];
    high[j] = highest[j];
    for (int64_t r = 1; r < kRows; ++r) {
      low[j] = std::min(low[j], lowest[r * columns + j]);
      high[j] = std::max(high[j], highest[r * columns + j]);
    }
  }
  return poisoned == 0;
}

// Labels by one multiplication. False, with labels of no use, if some value lies so close to an edge that rounding could
// have put it on the wrong side, or if the edges themselves are too coarsely rounded.
SF_INLINE bool estimated_labels(const double* SF_RESTRICT column, int64_t rows, const double* SF_RESTRICT edges,
                                int64_t bins, int32_t* SF_RESTRICT labels) {
  const double low = edges[0], high = edges[bins], step = (high - low) / static_cast<double>(bins);
  // An edge is off by a few ulps of the largest value: 1e-15 / 1e-8 bins, far inside the margin below.
  if (!(step > 1e-8 * std::max(std::fabs(low), std::fabs(high))) || bins > (1 << 20)) return false;
  const double inverse = 1.0 / step, margin = 1e-6;
  int suspect = 0;
#pragma omp simd reduction(| : suspect)
  for (int64_t i = 0; i < rows; ++i) {
    const double at = (column[i] - low) * inverse;
    const int32_t label = static_cast<int32_t>(at);
    const double over = at - static_cast<double>(label);
    // Written so that NaN and values outside the edges, which a caller should not pass, are suspect too.
    suspect |= !((over > margin) & (over < 1.0 - margin) & (label < bins));
    labels[i] = label;
  }
  return suspect == 0;
}

// Labels of one code in a block of `rows` values, `stride` apart; labels has room for a whole block.
template <class T>
SF_INLINE void block_labels(const T* SF_RESTRICT codes, int64_t rows, int64_t stride, const double* SF_RESTRICT edges,
                            int64_t bins, int32_t* SF_RESTRICT labels) {
  alignas(64) double column[kHistogramBlock];
  for (int64_t i = 0; i < rows; ++i) column[i] = static_cast<double>(codes[i * stride]);
  if (estimated_labels(column, rows, edges, bins, labels)) return;
  // The first edge is the minimum: every value is at least that.
  if (bins > kCountedBins) {
    for (int64_t i = 0; i < rows; ++i)
      labels[i] = static_cast<int32_t>(std::upper_bound(edges + 1, edges + bins, column[i]) - (edges + 1));
    return;
  }
  for (int64_t i = rows; i % kLanes != 0; ++i) column[i] = edges[0];
  for (int64_t i = 0; i < rows; i += kLanes) {
    Doubles x;
    std::memcpy(&x, column + i, sizeof x);
    Longs count = {};
    for (int64_t b = 1; b < bins; ++b) count -= x >= edges[b];
    const Ints label = __builtin_convertvector(count, Ints);
    std::memcpy(labels + i, &label, sizeof label);
  }
}

template <class T>
SF_INLINE void bin_labels_any(const T* SF_RESTRICT codes, int64_t begin, int64_t end, int64_t columns,
                              const double* SF_RESTRICT edges, int64_t bins, int32_t* SF_RESTRICT labels) {
  alignas(64) int32_t block[kHistogramBlock];
  for (int64_t row = begin; row < end; row += kHistogramBlock) {
    const int64_t rows = std::min(kHistogramBlock, end - row);
    for (int64_t d = 0; d < columns; ++d) {
      block_labels(codes + row * columns + d, rows, columns, edges + d * (bins + 1), bins, block);
      for (int64_t i = 0; i < rows; ++i) labels[(row + i) * columns + d] = block[i];
    }
  }
}

template <class T>
SF_INLINE bool joint_histogram_any(const T* SF_RESTRICT codes, int64_t begin, int64_t end, const JointHistogram& job,
                                   uint32_t* SF_RESTRICT tables, int32_t* SF_RESTRICT scratch) {
  alignas(64) int32_t label[kHistogramBlock];
  bool outside = false;
  const int64_t bins = job.bins;
  for (int64_t row = begin; row < end; row += kHistogramBlock) {
    const int64_t rows = std::min(kHistogramBlock, end - row);
    for (int64_t q = 0; q < job.num_groups; ++q) {
      int32_t* SF_RESTRICT joint = scratch + q * kHistogramBlock;
      for (int64_t i = 0; i < rows; ++i) joint[i] = 0;
      for (int64_t k = job.groups[q].first; k < job.groups[q].last; ++k) {
        const int64_t* SF_RESTRICT factor = job.factors + row * job.num_factors + k;
        const int32_t size = static_cast<int32_t>(job.sizes[k]);
        const int64_t low = job.low[k];
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t value = factor[i * job.num_factors] - low;
          outside |= static_cast<uint64_t>(value) >= static_cast<uint64_t>(size);
          joint[i] = joint[i] * size + static_cast<int32_t>(value);
        }
      }
    }
    // Checked before anything is written at such an index.
    if (outside) return false;
    for (int64_t d = 0; d < job.columns; ++d) {
      block_labels(codes + row * job.columns + d, rows, job.columns, job.edges + d * (bins + 1), bins, label);
      for (int64_t q = 0; q < job.num_groups; ++q) {
        const int32_t* SF_RESTRICT joint = scratch + q * kHistogramBlock;
        const int64_t size = job.groups[q].size;
        uint32_t* SF_RESTRICT table = tables + (job.groups[q].offset + d * size) * bins;
        for (int64_t i = 0; i < rows; ++i) ++table[label[i] * size + joint[i]];
      }
    }
  }
  return true;
}

}  // namespace

// The instruction set is chosen once per call; everything above is inlined into these.
SF_CLONES bool column_range(const float* values, int64_t begin, int64_t end, int64_t columns, float* low, float* high,
                            float* scratch) {
  return column_range_any(values, begin, end, columns, low, high, scratch);
}
SF_CLONES bool column_range(const double* values, int64_t begin, int64_t end, int64_t columns, double* low,
                            double* high, double* scratch) {
  return column_range_any(values, begin, end, columns, low, high, scratch);
}
SF_CLONES bool column_range(const int64_t* values, int64_t begin, int64_t end, int64_t columns, int64_t* low,
                            int64_t* high, int64_t* scratch) {
  return column_range_any(values, begin, end, columns, low, high, scratch);
}

SF_CLONES void bin_labels(const float* codes, int64_t begin, int64_t end, int64_t columns, const double* edges,
                          int64_t bins, int32_t* labels) {
  bin_labels_any(codes, begin, end, columns, edges, bins, labels);
}
SF_CLONES void bin_labels(const double* codes, int64_t begin, int64_t end, int64_t columns, const double* edges,
                          int64_t bins, int32_t* labels) {
  bin_labels_any(codes, begin, end, columns, edges, bins, labels);
}

SF_CLONES bool joint_histogram(const float* codes, int64_t begin, int64_t end, const JointHistogram& job,
                               uint32_t* tables, int32_t* scratch) {
  return joint_histogram_any(codes, begin, end, job, tables, scratch);
}
SF_CLONES bool joint_histogram(const double* codes, int64_t begin, int64_t end, const JointHistogram& job,
                               uint32_t* tables, int32_t* scratch) {
  return joint_histogram_any(codes, begin, end, job, tables, scratch);
}

}  // namespace strucfast
