#include "pairwise_loops.h"

namespace strucfast {
namespace {

template <PairKernel kKernel, bool kFour, bool kRowSlope, bool kColumnSlope, typename T>
SF_INLINE double mmd_group(const Points<T>& p, const Block& at, int64_t i, T weight, T* slope, T* columns) {
  constexpr int64_t rows = kFour ? kGroup : 1;
  alignas(64) T square[rows * kMostColumns], k[rows * kMostColumns], f[rows * kMostColumns];
  squared_distances<kFour>(p.z, p.stride, p.dims, i, at.column, at.columns, square);
  kernels_of<kKernel, kRowSlope>(square, rows * at.columns, p.bandwidths, p.num_bandwidths, k, f);
  keep_upper(at, i, rows, k);
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < rows * at.columns; ++j) sum += k[j];
  if (kRowSlope) {
    keep_upper(at, i, rows, f);
#pragma omp simd
    for (int64_t j = 0; j < rows * at.columns; ++j) f[j] *= weight;
    add_slopes<kFour, kColumnSlope>(f, p.z, p.stride, p.dims, i, at.column, at.columns, slope, columns);
  }
  return sum;
}

// Sum of k over the block's pairs; with kRowSlope and kColumnSlope their gradients, `weight` times.
template <PairKernel kKernel, bool kRowSlope, bool kColumnSlope, typename T>
SF_CLONES double mmd_block(const Points<T>& p, const Block& at, T weight, T* slope, T* columns) {
  if (kColumnSlope) std::fill_n(columns, p.dims * at.columns, T(0));
  double total = 0;
  int64_t i = at.row;
  for (; i + kGroup <= at.row + at.rows; i += kGroup) {
    total += mmd_group<kKernel, true, kRowSlope, kColumnSlope>(p, at, i, weight, slope, columns);
  }
  for (; i < at.row + at.rows; ++i) {
    total += mmd_group<kKernel, false, kRowSlope, kColumnSlope>(p, at, i, weight, slope, columns);
  }
  if (kColumnSlope) flush(columns, p.dims, at.columns, slope + at.column, p.stride);
  return total;
}

template <typename T>
using MmdBlock = double (*)(const Points<T>&, const Block&, T, T*, T*);

template <typename T, PairKernel kKernel>
MmdBlock<T> mmd_block_of(bool row_slope, bool column_slope) {
  // A gradient of the columns alone computes the rows' too, so that its sums do not depend on what else is asked for.
  if (column_slope) return &mmd_block<kKernel, true, true, T>;
  return row_slope ? &mmd_block<kKernel, true, false, T> : &mmd_block<kKernel, false, false, T>;
}

// 2 w of a pair: both of its orders count.
template <typename T>
double pair_weight(const Mmd<T>& m, bool row_first, bool column_first) {
  const double n = static_cast<double>(m.first), k = static_cast<double>(m.points - m.first);
  if (row_first != column_first) return -2.0 / (n * k);
  const double size = row_first ? n : k;
  return 2.0 / (size * (m.unbiased ? size - 1 : size));
}

}  // namespace

template <typename T>
int64_t Mmd<T>::units_per_slice() const {
  return std::min(units_of(points), ceil_div(kUnits, std::max<int64_t>(slices, 1)));
}

template <typename T>
int64_t mmd_memory(const Mmd<T>& m) {
  return m.dims * (pairwise_stride(m.points) + block_columns(m.dims));
}

template <typename T>
void mmd_pairs(const Mmd<T>& m, int64_t begin, int64_t end) {
  const int64_t units = m.units_per_slice(), stride = pairwise_stride(m.points);
  const auto block_of = m.kernel == PairKernel::kRbf ? &mmd_block_of<T, PairKernel::kRbf>
                                                     : &mmd_block_of<T, PairKernel::kImq>;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Points<T> p{m.z + unit / units * m.dims * stride, stride, m.dims, m.bandwidths, m.num_bandwidths};
    T* slope = m.memory == nullptr ? nullptr : m.memory + unit * mmd_memory(m);
    if (slope != nullptr) std::fill_n(slope, m.dims * stride, T(0));
    T* columns = slope == nullptr ? nullptr : slope + m.dims * stride;
    double total = 0;
    for_blocks(m.points, m.first, unit % units, units, block_columns(m.dims), [&](const Block& at) {
      const bool row_first = at.row < m.first, column_first = at.column < m.first;
      const auto wanted = [&](bool first) { return slope != nullptr && (first ? m.slope_first : m.slope_second); };
      const double weight = pair_weight(m, row_first, column_first);
      const auto block = block_of(wanted(row_first), wanted(column_first));
      total += weight * block(p, at, static_cast<T>(weight), slope, columns);
    });
    m.sums[unit] = total;
  }
}

template <typename T>
void mmd_finish(const Mmd<T>& m, T* value, T* slope_first, T* slope_second) {
  const int64_t units = m.units_per_slice(), coordinates = m.slices * m.dims;
  for (int64_t s = 0; s < m.slices; ++s) {
    double total = 0;
    for (int64_t u = 0; u < units; ++u) total += m.sums[s * units + u];
    // A point's pair with itself has k = 1 under every bandwidth.
    if (!m.unbiased) total += m.num_bandwidths * (1.0 / m.first + 1.0 / (m.points - m.first));
    value[s] = static_cast<T>(total);
    if (m.memory == nullptr) continue;
    const int64_t size = mmd_memory(m), stride = pairwise_stride(m.points), points = m.points;
    T* sums = m.memory + s * units * size;
    sum_units(sums, units, size, m.dims * stride);
    if (m.slope_first) write_rows(sums, stride, 0, m.first, m.dims, T(1), slope_first + s * m.dims, coordinates);
    if (m.slope_second) {
      write_rows(sums, stride, m.first, points, m.dims, T(1), slope_second + s * m.dims, coordinates);
    }
  }
}

#define SF_INSTANTIATE(T) \
  template struct Mmd<T>; \
  template int64_t mmd_memory(const Mmd<T>&); \
  template void mmd_pairs(const Mmd<T>&, int64_t, int64_t); \
  template void mmd_finish(const Mmd<T>&, T*, T*, T*);
SF_INSTANTIATE(float)
SF_INSTANTIATE(double)
#undef SF_INSTANTIATE

}  // namespace strucfast
