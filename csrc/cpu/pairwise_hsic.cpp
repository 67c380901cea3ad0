#include "pairwise_loops.h"

namespace strucfast {
namespace {

// Sums over a unit's pairs i < j, and for each point over its partners (points each).
struct HsicSums {
  double k, l, kl;
  double *rows_k, *rows_l;
};

template <PairKernel kKernel, bool kFour, typename T>
SF_INLINE void hsic_group(const Points<T>& x, const Points<T>& y, const Block& at, int64_t i, HsicSums* sums,
                          T* columns_k, T* columns_l) {
  constexpr int64_t rows = kFour ? kGroup : 1;
  alignas(64) T square[rows * kMostColumns], k[rows * kMostColumns], l[rows * kMostColumns];
  squared_distances<kFour>(x.z, x.stride, x.dims, i, at.column, at.columns, square);
  kernels_of<kKernel, false, T>(square, rows * at.columns, x.bandwidths, x.num_bandwidths, k, nullptr);
  keep_upper(at, i, rows, k);
  squared_distances<kFour>(y.z, y.stride, y.dims, i, at.column, at.columns, square);
  kernels_of<kKernel, false, T>(square, rows * at.columns, y.bandwidths, y.num_bandwidths, l, nullptr);
  keep_upper(at, i, rows, l);
  for (int64_t r = 0; r < rows; ++r) {
    const T* SF_RESTRICT kr = k + r * at.columns;
    const T* SF_RESTRICT lr = l + r * at.columns;
    T* SF_RESTRICT to_k = columns_k;
    T* SF_RESTRICT to_l = columns_l;
    T sum_k = 0, sum_l = 0, sum_kl = 0;
#pragma omp simd reduction(+ : sum_k, sum_l, sum_kl)
    for (int64_t j = 0; j < at.columns; ++j) {
      sum_k += kr[j];
      sum_l += lr[j];
      sum_kl += kr[j] * lr[j];
      to_k[j] += kr[j];
      to_l[j] += lr[j];
    }
    sums->k += sum_k;
    sums->l += sum_l;
    sums->kl += sum_kl;
    sums->rows_k[i + r] += sum_k;
    sums->rows_l[i + r] += sum_l;
  }
}

template <PairKernel kKernel, typename T>
SF_CLONES void hsic_block(const Points<T>& x, const Points<T>& y, const Block& at, HsicSums* sums) {
  alignas(64) T columns_k[kMostColumns], columns_l[kMostColumns];
  std::fill_n(columns_k, at.columns, T(0));
  std::fill_n(columns_l, at.columns, T(0));
  int64_t i = at.row;
  for (; i + kGroup <= at.row + at.rows; i += kGroup) {
    hsic_group<kKernel, true>(x, y, at, i, sums, columns_k, columns_l);
  }
  for (; i < at.row + at.rows; ++i) hsic_group<kKernel, false>(x, y, at, i, sums, columns_k, columns_l);
  for (int64_t j = 0; j < at.columns; ++j) {
    sums->rows_k[at.column + j] += columns_k[j];
    sums->rows_l[at.column + j] += columns_l[j];
  }
}

// One side of the backward; its slope is null where it is not asked for.
template <typename T>
struct HsicGradient {
  Points<T> points;
  const T* centre;
  T *slope, *columns;
};

// factor_r *= weight (other - centre_i - centre_j)
template <typename T>
SF_INLINE void weigh(T* SF_RESTRICT factor, const T* SF_RESTRICT other, const T* SF_RESTRICT centre, T own, T weight,
                     int64_t size) {
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) factor[j] *= weight * ((other[j] - own) - centre[j]);
}

template <PairKernel kKernel, bool kFour, typename T>
SF_INLINE void hsic_backward_group(const HsicGradient<T>& x, const HsicGradient<T>& y, const Block& at, int64_t i,
                                   T weight) {
  constexpr int64_t rows = kFour ? kGroup : 1;
  alignas(64) T square[rows * kMostColumns], values[2][rows * kMostColumns], factors[2][rows * kMostColumns];
  const HsicGradient<T>* sides[2] = {&x, &y};
  for (int s = 0; s < 2; ++s) {
    const Points<T>& p = sides[s]->points;
    squared_distances<kFour>(p.z, p.stride, p.dims, i, at.column, at.columns, square);
    kernels_of<kKernel, true>(square, rows * at.columns, p.bandwidths, p.num_bandwidths, values[s], factors[s]);
  }
  for (int s = 0; s < 2; ++s) {
    if (sides[s]->slope == nullptr) continue;
    const T* centre = sides[1 - s]->centre;
    for (int64_t r = 0; r < rows; ++r) {
      weigh(factors[s] + r * at.columns, values[1 - s] + r * at.columns, centre + at.column, centre[i + r], weight,
            at.columns);
    }
    keep_upper(at, i, rows, factors[s]);
    const Points<T>& p = sides[s]->points;
    add_slopes<kFour, true>(factors[s], p.z, p.stride, p.dims, i, at.column, at.columns, sides[s]->slope,
                            sides[s]->columns);
  }
}

template <PairKernel kKernel, typename T>
SF_CLONES void hsic_backward_block(const HsicGradient<T>& x, const HsicGradient<T>& y, const Block& at, T weight) {
  for (const HsicGradient<T>* side : {&x, &y}) {
    if (side->slope != nullptr) std::fill_n(side->columns, side->points.dims * at.columns, T(0));
  }
  int64_t i = at.row;
  for (; i + kGroup <= at.row + at.rows; i += kGroup) hsic_backward_group<kKernel, true>(x, y, at, i, weight);
  for (; i < at.row + at.rows; ++i) hsic_backward_group<kKernel, false>(x, y, at, i, weight);
  for (const HsicGradient<T>* side : {&x, &y}) {
    if (side->slope == nullptr) continue;
    flush(side->columns, side->points.dims, at.columns, side->slope + at.column, side->points.stride);
  }
}

double constant_of(int64_t points, bool unbiased) {
  const double n = static_cast<double>(points);
  return unbiased ? 1 / (n * (n - 3)) : 1 / (n * n);
}

template <typename T>
Points<T> points_of(const HsicSide<T>& side, int64_t points) {
  return {side.z, pairwise_stride(points), side.dims, side.bandwidths, side.num_bandwidths};
}

}  // namespace

template <typename T>
int64_t Hsic<T>::units() const {
  return units_of(points);
}

template <typename T>
int64_t hsic_sums(const Hsic<T>& h) {
  return 3 + 2 * h.points;
}

template <typename T>
int64_t hsic_memory(const Hsic<T>& h) {
  const int64_t dims = h.x.dims + h.y.dims;
  return dims * (pairwise_stride(h.points) + block_columns(dims));
}

template <typename T>
void hsic_pairs(const Hsic<T>& h, int64_t begin, int64_t end) {
  const auto block = h.kernel == PairKernel::kRbf ? &hsic_block<PairKernel::kRbf, T> : &hsic_block<PairKernel::kImq, T>;
  const int64_t most = block_columns(h.x.dims + h.y.dims);
  const Points<T> x = points_of(h.x, h.points), y = points_of(h.y, h.points);
  for (int64_t unit = begin; unit < end; ++unit) {
    double* to = h.sums + unit * hsic_sums(h);
    HsicSums sums{0, 0, 0, to + 3, to + 3 + h.points};
    std::fill_n(sums.rows_k, 2 * h.points, 0.0);
    for_blocks(h.points, h.points, unit, h.units(), most, [&](const Block& at) { block(x, y, at, &sums); });
    to[0] = sums.k;
    to[1] = sums.l;
    to[2] = sums.kl;
  }
}

template <typename T>
void hsic_finish(const Hsic<T>& h, T* value, T* centre_x, T* centre_y) {
  // Unit 0 takes the others' sums; each pair i < j stands for two, and the diagonal is added unless it is left out.
  double* sums = h.sums;
  for (int64_t u = 1; u < h.units(); ++u) {
    for (int64_t i = 0; i < hsic_sums(h); ++i) sums[i] += h.sums[u * hsic_sums(h) + i];
  }
  const double n = static_cast<double>(h.points);
  const double own_x = h.unbiased ? 0 : h.x.num_bandwidths, own_y = h.unbiased ? 0 : h.y.num_bandwidths;
  const double total_x = 2 * sums[0] + n * own_x, total_y = 2 * sums[1] + n * own_y;
  const double product = 2 * sums[2] + n * own_x * own_y;
  const double pairs = h.unbiased ? n * (n - 1) : n * n, others = h.unbiased ? n - 2 : n;
  double covariance = 0;
  for (int64_t i = 0; i < h.points; ++i) {
    const double row_x = sums[3 + i] + own_x, row_y = sums[3 + h.points + i] + own_y;
    covariance += (row_x - total_x / n) * (row_y - total_y / n);
    centre_x[i] = static_cast<T>(row_x / others - 0.5 * total_x / (h.unbiased ? (n - 1) * (n - 2) : n * n));
    centre_y[i] = static_cast<T>(row_y / others - 0.5 * total_y / (h.unbiased ? (n - 1) * (n - 2) : n * n));
  }
  // Differences of means, so that a constant kernel gives 0 and not what rounding left over.
  const double result = (product - total_x * (total_y / pairs)) - 2 * covariance / others;
  *value = static_cast<T>(result * constant_of(h.points, h.unbiased));
}

template <typename T>
void hsic_backward_pairs(const Hsic<T>& h, int64_t begin, int64_t end) {
  const auto block = h.kernel == PairKernel::kRbf ? &hsic_backward_block<PairKernel::kRbf, T>
                                                  : &hsic_backward_block<PairKernel::kImq, T>;
  const int64_t dims = h.x.dims + h.y.dims, most = block_columns(dims), stride = pairwise_stride(h.points);
  const T weight = static_cast<T>(2 * constant_of(h.points, h.unbiased));
  for (int64_t unit = begin; unit < end; ++unit) {
    T* slopes = h.memory + unit * hsic_memory(h);
    std::fill_n(slopes, dims * stride, T(0));
    T* columns = slopes + dims * stride;
    const HsicGradient<T> x{points_of(h.x, h.points), h.x.centre, h.slope_x ? slopes : nullptr, columns};
    const HsicGradient<T> y{points_of(h.y, h.points), h.y.centre,
                            h.slope_y ? slopes + h.x.dims * stride : nullptr, columns + h.x.dims * most};
    for_blocks(h.points, h.points, unit, h.units(), most, [&](const Block& at) { block(x, y, at, weight); });
  }
}

template <typename T>
void hsic_backward_finish(const Hsic<T>& h, T grad, T* dx, T* dy) {
  const int64_t n = h.points, stride = pairwise_stride(n);
  sum_units(h.memory, h.units(), hsic_memory(h), (h.x.dims + h.y.dims) * stride);
  if (h.slope_x) write_rows(h.memory, stride, 0, n, h.x.dims, grad, dx, h.x.dims);
  if (h.slope_y) write_rows(h.memory + h.x.dims * stride, stride, 0, n, h.y.dims, grad, dy, h.y.dims);
}

#define SF_INSTANTIATE(T) \
  template struct Hsic<T>; \
  template int64_t hsic_sums(const Hsic<T>&); \
  template int64_t hsic_memory(const Hsic<T>&); \
  template void hsic_pairs(const Hsic<T>&, int64_t, int64_t); \
  template void hsic_finish(const Hsic<T>&, T*, T*, T*); \
  template void hsic_backward_pairs(const Hsic<T>&, int64_t, int64_t); \
  template void hsic_backward_finish(const Hsic<T>&, T, T*, T*);
SF_INSTANTIATE(float)
SF_INSTANTIATE(double)
#undef SF_INSTANTIATE

}  // namespace strucfast
