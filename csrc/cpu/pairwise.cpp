#include "pairwise.h"

#include <algorithm>

namespace strucfast {
namespace {

constexpr int64_t kRows = 32;       // rows of a block; its column sums are added up in registers' precision
constexpr int64_t kMostColumns = 512;
constexpr int64_t kUnits = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The columns and their gradient stay in L1 while the rows of a block go over them.
int64_t block_columns(int64_t dims) {
  return std::clamp<int64_t>(4096 / std::max<int64_t>(dims, 1) / 16 * 16, 64, kMostColumns);
}

int64_t units_of(int64_t points) { return std::clamp<int64_t>(ceil_div(points, kRows), 1, kUnits); }

// Squared distances from point i to `size` points from `begin` on.
template <typename T>
SF_INLINE void squared_distances(const T* SF_RESTRICT z, int64_t points, int64_t dims, int64_t i, int64_t begin,
                                 int64_t size, T* SF_RESTRICT square) {
  for (int64_t d = 0; d < dims; ++d) {
    const T* SF_RESTRICT b = z + d * points + begin;
    const T a = z[d * points + i];
    if (d == 0) {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) square[j] = (a - b[j]) * (a - b[j]);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) square[j] += (a - b[j]) * (a - b[j]);
    }
  }
}

// k and, where wanted, f of the squared distances, summed over the bandwidths.
template <PairKernel kKernel, bool kFactor, typename T>
SF_INLINE void kernels_of(const T* SF_RESTRICT square, int64_t size, const Bandwidth<T>* bandwidths, int64_t count,
                          T* SF_RESTRICT k, T* SF_RESTRICT f) {
  for (int64_t n = 0; n < count; ++n) {
    const Bandwidth<T> width = bandwidths[n];
    if (n == 0) {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) {
        k[j] = pair_kernel<kKernel>(square[j], width);
        if (kFactor) f[j] = pair_factor<kKernel>(k[j], width);
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) {
        const T one = pair_kernel<kKernel>(square[j], width);
        k[j] += one;
        if (kFactor) f[j] += pair_factor<kKernel>(one, width);
      }
    }
  }
}

// Adds weight (z_i - z_j) to point i's gradient and subtracts it from the columns'.
template <bool kColumns, typename T>
SF_INLINE void add_slopes(const T* SF_RESTRICT weight, const T* SF_RESTRICT z, int64_t points, int64_t dims, int64_t i,
                          int64_t begin, int64_t size, T* SF_RESTRICT slope, T* SF_RESTRICT columns,
                          int64_t columns_stride) {
  for (int64_t d = 0; d < dims; ++d) {
    const T* SF_RESTRICT b = z + d * points + begin;
    T* SF_RESTRICT column = columns + d * columns_stride;
    const T a = z[d * points + i];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < size; ++j) {
      const T pull = weight[j] * (a - b[j]);
      sum += pull;
      if (kColumns) column[j] -= pull;
    }
    slope[d * points + i] += sum;
  }
}

template <typename T>
SF_INLINE void flush(T* SF_RESTRICT columns, int64_t stride, int64_t dims, int64_t size, T* SF_RESTRICT slope,
                     int64_t points) {
  for (int64_t d = 0; d < dims; ++d) {
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) slope[d * points + j] += columns[d * stride + j];
  }
}

template <typename T>
struct Tile {
  const T* z;
  int64_t points, dims;
  int64_t row, row_end, column, column_end;
  const Bandwidth<T>* bandwidths;
  int64_t num_bandwidths;
};

// Sum of k over the tile's pairs i < j; with kRowSlope and kColumnSlope their gradients, `weight` times.
template <PairKernel kKernel, bool kRowSlope, bool kColumnSlope, typename T>
SF_CLONES double mmd_tile(const Tile<T>& t, T weight, T* slope, T* columns) {
  alignas(64) T square[kMostColumns], k[kMostColumns], f[kMostColumns];
  constexpr bool kSlope = kRowSlope || kColumnSlope;
  const int64_t width = t.column_end - t.column;
  if (kColumnSlope) std::fill_n(columns, t.dims * width, T(0));
  double total = 0;
  for (int64_t i = t.row; i < t.row_end; ++i) {
    const int64_t begin = std::max(t.column, i + 1), size = t.column_end - begin;
    if (size <= 0) break;
    squared_distances(t.z, t.points, t.dims, i, begin, size, square);
    kernels_of<kKernel, kSlope>(square, size, t.bandwidths, t.num_bandwidths, k, f);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < size; ++j) {
      sum += k[j];
      if (kSlope) f[j] *= weight;
    }
    total += sum;
    if (kSlope) {
      add_slopes<kColumnSlope>(f, t.z, t.points, t.dims, i, begin, size, slope, columns + (begin - t.column), width);
    }
  }
  if (kColumnSlope) flush(columns, width, t.dims, width, slope + t.column, t.points);
  return total;
}

template <typename T>
using MmdTile = double (*)(const Tile<T>&, T, T*, T*);

template <typename T>
MmdTile<T> mmd_tile_of(PairKernel kernel, bool row_slope, bool column_slope) {
  // A gradient of the columns alone computes that of the rows as well: its sums are the same either way.
  const int which = column_slope ? 2 : row_slope ? 1 : 0;
  if (kernel == PairKernel::kRbf) {
    constexpr MmdTile<T> all[] = {&mmd_tile<PairKernel::kRbf, false, false, T>, &mmd_tile<PairKernel::kRbf, true, false, T>,
                                  &mmd_tile<PairKernel::kRbf, true, true, T>};
    return all[which];
  }
  constexpr MmdTile<T> all[] = {&mmd_tile<PairKernel::kImq, false, false, T>, &mmd_tile<PairKernel::kImq, true, false, T>,
                                &mmd_tile<PairKernel::kImq, true, true, T>};
  return all[which];
}

// 2 w of a pair: both of its orders count.
template <typename T>
double pair_weight(const Mmd<T>& m, bool row_first, bool column_first) {
  const double n = static_cast<double>(m.first), k = static_cast<double>(m.points - m.first);
  if (row_first != column_first) return -2.0 / (n * k);
  const double size = row_first ? n : k;
  return 2.0 / (size * (m.unbiased ? size - 1 : size));
}

template <typename T>
struct HsicTile {
  Tile<T> x, y;
  double *rows_x, *rows_y;  // (points)
};

struct HsicSums {
  double k, l, kl;
};

template <PairKernel kKernel, typename T>
SF_CLONES void hsic_tile(const HsicTile<T>& t, HsicSums* sums) {
  alignas(64) T square[kMostColumns], k[kMostColumns], l[kMostColumns];
  alignas(64) T columns_k[kMostColumns], columns_l[kMostColumns];
  const int64_t column = t.x.column, width = t.x.column_end - column;
  std::fill_n(columns_k, width, T(0));
  std::fill_n(columns_l, width, T(0));
  for (int64_t i = t.x.row; i < t.x.row_end; ++i) {
    const int64_t begin = std::max(column, i + 1), size = t.x.column_end - begin;
    if (size <= 0) break;
    squared_distances(t.x.z, t.x.points, t.x.dims, i, begin, size, square);
    kernels_of<kKernel, false, T>(square, size, t.x.bandwidths, t.x.num_bandwidths, k, nullptr);
    squared_distances(t.y.z, t.y.points, t.y.dims, i, begin, size, square);
    kernels_of<kKernel, false, T>(square, size, t.y.bandwidths, t.y.num_bandwidths, l, nullptr);
    T* SF_RESTRICT to_k = columns_k + (begin - column);
    T* SF_RESTRICT to_l = columns_l + (begin - column);
    T sum_k = 0, sum_l = 0, sum_kl = 0;
#pragma omp simd reduction(+ : sum_k, sum_l, sum_kl)
    for (int64_t j = 0; j < size; ++j) {
      sum_k += k[j];
      sum_l += l[j];
      // Rounded by itself: with l = 1 the sum is that of k to the last bit.
      const T product = k[j] * l[j];
      sum_kl += product;
      to_k[j] += k[j];
      to_l[j] += l[j];
    }
    sums->k += sum_k;
    sums->l += sum_l;
    sums->kl += sum_kl;
    t.rows_x[i] += sum_k;
    t.rows_y[i] += sum_l;
  }
  for (int64_t j = 0; j < width; ++j) {
    t.rows_x[column + j] += columns_k[j];
    t.rows_y[column + j] += columns_l[j];
  }
}

template <PairKernel kKernel, typename T>
SF_CLONES void hsic_backward_tile(const HsicTile<T>& t, const T* centre_x, const T* centre_y, T weight, T* slope_x,
                                  T* slope_y, T* columns_x, T* columns_y) {
  alignas(64) T square[kMostColumns], k[kMostColumns], l[kMostColumns], fk[kMostColumns], fl[kMostColumns];
  const int64_t column = t.x.column, width = t.x.column_end - column;
  if (slope_x != nullptr) std::fill_n(columns_x, t.x.dims * width, T(0));
  if (slope_y != nullptr) std::fill_n(columns_y, t.y.dims * width, T(0));
  for (int64_t i = t.x.row; i < t.x.row_end; ++i) {
    const int64_t begin = std::max(column, i + 1), size = t.x.column_end - begin;
    if (size <= 0) break;
    squared_distances(t.x.z, t.x.points, t.x.dims, i, begin, size, square);
    kernels_of<kKernel, true, T>(square, size, t.x.bandwidths, t.x.num_bandwidths, k, fk);
    squared_distances(t.y.z, t.y.points, t.y.dims, i, begin, size, square);
    kernels_of<kKernel, true, T>(square, size, t.y.bandwidths, t.y.num_bandwidths, l, fl);
    const T* SF_RESTRICT u = centre_x + begin;
    const T* SF_RESTRICT v = centre_y + begin;
    const T ui = centre_x[i], vi = centre_y[i];
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) {
      fk[j] *= weight * (l[j] - vi - v[j]);
      fl[j] *= weight * (k[j] - ui - u[j]);
    }
    const int64_t skipped = begin - column;
    if (slope_x != nullptr) {
      add_slopes<true>(fk, t.x.z, t.x.points, t.x.dims, i, begin, size, slope_x, columns_x + skipped, width);
    }
    if (slope_y != nullptr) {
      add_slopes<true>(fl, t.y.z, t.y.points, t.y.dims, i, begin, size, slope_y, columns_y + skipped, width);
    }
  }
  if (slope_x != nullptr) flush(columns_x, width, t.x.dims, width, slope_x + column, t.x.points);
  if (slope_y != nullptr) flush(columns_y, width, t.y.dims, width, slope_y + column, t.y.points);
}

// Calls f(row, row_end, column, column_end) for the blocks of pairs i < j of a unit: every so-many-th block of rows.
template <typename F>
void for_blocks(int64_t points, int64_t unit, int64_t units, int64_t columns, const F& f) {
  for (int64_t row = unit * kRows; row < points; row += units * kRows) {
    const int64_t row_end = std::min(row + kRows, points);
    for (int64_t column = row; column < points; column += columns) {
      f(row, row_end, column, std::min(column + columns, points));
    }
  }
}

// (dims, points) sums over the units, times `scale`, to rows of coordinates.
template <typename T>
void add_units(const T* memory, int64_t units, int64_t unit_size, int64_t points, int64_t begin, int64_t end,
               int64_t dims, T scale, T* to, int64_t to_stride) {
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t d = 0; d < dims; ++d) {
      T sum = 0;
      for (int64_t u = 0; u < units; ++u) sum += memory[u * unit_size + d * points + i];
      to[(i - begin) * to_stride + d] = scale * sum;
    }
  }
}

double constant_of(int64_t points, bool unbiased) {
  const double n = static_cast<double>(points);
  return unbiased ? 1 / (n * (n - 3)) : 1 / (n * n);
}

template <typename T>
Tile<T> side_tile(const HsicSide<T>& side, int64_t points, int64_t row, int64_t row_end, int64_t column,
                  int64_t column_end) {
  return {side.z, points, side.dims, row, row_end, column, column_end, side.bandwidths, side.num_bandwidths};
}

}  // namespace

template <typename T>
int64_t Mmd<T>::units_per_slice() const {
  return std::min(units_of(points), ceil_div(kUnits, std::max<int64_t>(slices, 1)));
}

template <typename T>
int64_t mmd_memory(const Mmd<T>& m) {
  return m.dims * (m.points + block_columns(m.dims));
}

template <typename T>
void mmd_pairs(const Mmd<T>& m, int64_t begin, int64_t end) {
  const int64_t units = m.units_per_slice(), most = block_columns(m.dims);
  for (int64_t unit = begin; unit < end; ++unit) {
    const T* z = m.z + unit / units * m.dims * m.points;
    T* slope = m.memory == nullptr ? nullptr : m.memory + unit * mmd_memory(m);
    T* columns = slope == nullptr ? nullptr : slope + m.dims * m.points;
    if (slope != nullptr) std::fill_n(slope, m.dims * m.points, T(0));
    double total = 0;
    const auto block = [&](int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
      if (row >= row_end || column >= column_end) return;
      const bool row_first = row < m.first, column_first = column < m.first;
      const double weight = pair_weight(m, row_first, column_first);
      const auto wanted = [&](bool first) { return slope != nullptr && (first ? m.slope_first : m.slope_second); };
      const auto tile = mmd_tile_of<T>(m.kernel, wanted(row_first), wanted(column_first));
      const Tile<T> t{z, m.points, m.dims, row, row_end, column, column_end, m.bandwidths, m.num_bandwidths};
      total += weight * tile(t, static_cast<T>(weight), slope, columns);
    };
    for_blocks(m.points, unit % units, units, most, [&](int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
      // A block on the border of the two samples is four.
      const int64_t row_cut = std::clamp(m.first, row, row_end), column_cut = std::clamp(m.first, column, column_end);
      block(row, row_cut, column, column_cut);
      block(row, row_cut, column_cut, column_end);
      block(row_cut, row_end, column, column_cut);
      block(row_cut, row_end, column_cut, column_end);
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
    const int64_t size = m.memory == nullptr ? 0 : mmd_memory(m);
    const T* memory = m.memory + s * units * size;
    if (m.slope_first) {
      add_units(memory, units, size, m.points, 0, m.first, m.dims, T(1), slope_first + s * m.dims, coordinates);
    }
    if (m.slope_second) {
      add_units(memory, units, size, m.points, m.first, m.points, m.dims, T(1), slope_second + s * m.dims, coordinates);
    }
  }
}

template <typename T>
int64_t Hsic<T>::units() const {
  return units_of(points);
}

template <typename T>
int64_t hsic_sums(const Hsic<T>& h) {
  return 3 + 2 * h.points;
}

template <typename T>
int64_t hsic_memory(const Hsic<T>& h, bool backward) {
  const int64_t dims = h.x.dims + h.y.dims;
  return backward ? dims * (h.points + block_columns(dims)) : 0;
}

template <typename T>
void hsic_pairs(const Hsic<T>& h, int64_t begin, int64_t end) {
  const auto tile = h.kernel == PairKernel::kRbf ? &hsic_tile<PairKernel::kRbf, T> : &hsic_tile<PairKernel::kImq, T>;
  for (int64_t unit = begin; unit < end; ++unit) {
    double* rows = h.sums + unit * hsic_sums(h) + 3;
    HsicSums sums{0, 0, 0};
    std::fill_n(rows, 2 * h.points, 0.0);
    const int64_t most = block_columns(h.x.dims + h.y.dims);
    for_blocks(h.points, unit, h.units(), most, [&](int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
      tile({side_tile(h.x, h.points, row, row_end, column, column_end),
            side_tile(h.y, h.points, row, row_end, column, column_end), rows, rows + h.points},
           &sums);
    });
    std::copy_n(&sums.k, 3, rows - 3);
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
  const auto tile = h.kernel == PairKernel::kRbf ? &hsic_backward_tile<PairKernel::kRbf, T>
                                                 : &hsic_backward_tile<PairKernel::kImq, T>;
  const int64_t dims = h.x.dims + h.y.dims, most = block_columns(dims);
  const T weight = static_cast<T>(2 * constant_of(h.points, h.unbiased));
  for (int64_t unit = begin; unit < end; ++unit) {
    T* slopes = h.memory + unit * hsic_memory(h, true);
    std::fill_n(slopes, dims * h.points, T(0));
    T* columns = slopes + dims * h.points;
    T* slope_y = slopes + h.x.dims * h.points;
    for_blocks(h.points, unit, h.units(), most, [&](int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
      tile({side_tile(h.x, h.points, row, row_end, column, column_end),
            side_tile(h.y, h.points, row, row_end, column, column_end), nullptr, nullptr},
           h.x.centre, h.y.centre, weight, h.slope_x ? slopes : nullptr, h.slope_y ? slope_y : nullptr, columns,
           columns + h.x.dims * most);
    });
  }
}

template <typename T>
void hsic_backward_finish(const Hsic<T>& h, T grad, T* dx, T* dy) {
  const int64_t size = hsic_memory(h, true), n = h.points;
  if (h.slope_x) add_units(h.memory, h.units(), size, n, 0, n, h.x.dims, grad, dx, h.x.dims);
  if (h.slope_y) {
    add_units(h.memory + h.x.dims * n, h.units(), size, n, 0, n, h.y.dims, grad, dy, h.y.dims);
  }
}

#define SF_INSTANTIATE(T)                                              \
  template struct Mmd<T>;                                              \
  template int64_t mmd_memory(const Mmd<T>&);                          \
  template void mmd_pairs(const Mmd<T>&, int64_t, int64_t);            \
  template void mmd_finish(const Mmd<T>&, T*, T*, T*);                 \
  template struct Hsic<T>;                                             \
  template int64_t hsic_sums(const Hsic<T>&);                          \
  template int64_t hsic_memory(const Hsic<T>&, bool);                  \
  template void hsic_pairs(const Hsic<T>&, int64_t, int64_t);          \
  template void hsic_finish(const Hsic<T>&, T*, T*, T*);               \
  template void hsic_backward_pairs(const Hsic<T>&, int64_t, int64_t); \
  template void hsic_backward_finish(const Hsic<T>&, T, T*, T*);
SF_INSTANTIATE(float)
SF_INSTANTIATE(double)
#undef SF_INSTANTIATE

}  // namespace strucfast
