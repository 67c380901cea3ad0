#pragma once
#include <cuda_runtime.h>

#include <cstdint>

// What csrc/cpu/histogram.h does, for arrays on a GPU. A code's label is #{edges[0..bins-1] <= x} - 1 with float64 edges;
// float32 codes come with the edges rounded up to float32, which compares alike and needs no float64 arithmetic.
namespace strucfast::cuda {

// out (3, columns): minimum, maximum, and 1 where a column holds NaN or infinity (its extrema are then of no use).
// values (rows, columns), at least one each; workspace: column_range_parts(rows, columns) * 3 * columns values.
// T: float, double, int64_t.
template <typename T>
cudaError_t column_range(const T* values, int64_t rows, int64_t columns, T* out, T* workspace, cudaStream_t stream);
int64_t column_range_parts(int64_t rows, int64_t columns);

// T: float, double.
template <typename T>
struct HistogramJob {
  int64_t rows, columns, num_factors, bins;
  // Numbers of values of all factors together: factor k's are counted from starts[k] to starts[k + 1].
  int64_t values;
  // (rows, columns)
  const T* codes;
  // (columns, bins + 1)
  const T* edges;
  // (rows, num_factors); factor k counts from low[k] upwards, and what lies outside its range is not counted.
  const int64_t* factors;
  const int64_t* low;
  const int64_t* starts;
  // (columns, bins, values), zeroed by the caller.
  int64_t* counts;
};

template <typename T>
cudaError_t joint_histogram(const HistogramJob<T>& job, cudaStream_t stream);

}  // namespace strucfast::cuda
