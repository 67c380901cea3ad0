#pragma once
#include <cstdint>

#include "../common/pairwise.h"

// Statistics over all pairs of points in one triangular pass: each pair is evaluated once and counts for both points.
// Points are (dims, pairwise_stride(points)), so that the points of a coordinate are contiguous.
//
// A unit of work owns every so-many-th block of rows and its own sums, which the caller adds up in a fixed order; how
// many units there are depends on the sizes alone. So the result does not depend on the threads.
namespace strucfast {

// An odd number of cache lines (of floats): with a power of two all coordinates would share a few sets of the cache.
inline int64_t pairwise_stride(int64_t points) { return (points + 31) / 32 * 32 + 16; }

// Squared MMD between points [0, first) and [first, points), one statistic per slice of `dims` coordinates.
template <typename T>
struct Mmd {
  int64_t slices, dims, points, first;
  bool unbiased;
  bool slope_first, slope_second;  // which gradients to compute
  PairKernel kernel;
  const Bandwidth<T>* bandwidths;
  int64_t num_bandwidths;
  const T* z;    // (slices * dims, stride)
  double* sums;  // (units)
  T* memory;     // units * mmd_memory(), or null without gradients

  int64_t units_per_slice() const;
  int64_t units() const { return slices * units_per_slice(); }
};

template <typename T>
int64_t mmd_memory(const Mmd<T>& m);
template <typename T>
void mmd_pairs(const Mmd<T>& m, int64_t begin, int64_t end);
// The statistics (slices), and the gradients of those asked for as rows of slices * dims coordinates.
template <typename T>
void mmd_finish(const Mmd<T>& m, T* value, T* slope_first, T* slope_second);

template <typename T>
struct HsicSide {
  int64_t dims;
  const Bandwidth<T>* bandwidths;
  int64_t num_bandwidths;
  const T* z;       // (dims, stride)
  const T* centre;  // (points), backward only
};

template <typename T>
struct Hsic {
  int64_t points;
  bool unbiased;
  PairKernel kernel;
  HsicSide<T> x, y;
  double* sums;  // forward: units * hsic_sums()
  T* memory;     // backward: units * hsic_memory()
  bool slope_x, slope_y;

  int64_t units() const;
};

template <typename T>
int64_t hsic_sums(const Hsic<T>& h);
template <typename T>
int64_t hsic_memory(const Hsic<T>& h);
template <typename T>
void hsic_pairs(const Hsic<T>& h, int64_t begin, int64_t end);
template <typename T>
void hsic_finish(const Hsic<T>& h, T* value, T* centre_x, T* centre_y);
template <typename T>
void hsic_backward_pairs(const Hsic<T>& h, int64_t begin, int64_t end);
// grad times the gradient of the statistic, as rows of `dims` coordinates; null where it is not asked for.
template <typename T>
void hsic_backward_finish(const Hsic<T>& h, T grad, T* dx, T* dy);

}  // namespace strucfast
