#pragma once
#include <algorithm>

#include "pairwise.h"

// Loops over blocks of pairs that the statistics share; each is inlined into their cloned functions.
namespace strucfast {
namespace {

constexpr int64_t kRows = 32;  // rows of a block; a column's sums over them are added up before they leave the cache
constexpr int64_t kGroup = 4;  // rows that go over the columns together
constexpr int64_t kMostColumns = 512;
constexpr int64_t kUnits = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The columns and their gradient stay in the cache while the rows of a block go over them.
int64_t block_columns(int64_t dims) {
  return std::clamp<int64_t>(32768 / std::max<int64_t>(dims, 1) / 16 * 16, 64, kMostColumns);
}

int64_t units_of(int64_t points) { return std::clamp<int64_t>(ceil_div(points, kRows), 1, kUnits); }

// Pairs of `rows` points from `row` on with `columns` points from `column` on. On the diagonal only those with i < j.
struct Block {
  int64_t row, rows, column, columns;
  bool diagonal() const { return row == column; }
};

// Calls f for the blocks of a unit: every so-many-th block of rows. No block crosses `first`.
template <typename F>
void for_blocks(int64_t points, int64_t first, int64_t unit, int64_t units, int64_t most, const F& f) {
  const int64_t blocks_first = ceil_div(first, kRows), blocks = blocks_first + ceil_div(points - first, kRows);
  for (int64_t b = unit; b < blocks; b += units) {
    const bool of_first = b < blocks_first;
    const int64_t end = of_first ? first : points;
    const int64_t row = of_first ? b * kRows : first + (b - blocks_first) * kRows;
    const int64_t rows = std::min(kRows, end - row);
    f(Block{row, rows, row, rows});
    for (int64_t column = row + rows; column < points;) {
      const int64_t columns = std::min(most, (column < end ? end : points) - column);
      f(Block{row, rows, column, columns});
      column += columns;
    }
  }
}

// One coordinate (kPair: two) of the squared distances from kFour ? 4 : 1 points to `size` points; rows of `square`
// follow one another.
template <bool kFour, bool kPair, bool kFirst, typename T>
SF_INLINE void add_squares(const T* SF_RESTRICT a, const T* SF_RESTRICT b, int64_t stride, int64_t size,
                           T* SF_RESTRICT square) {
  T* SF_RESTRICT s0 = square;
  T* SF_RESTRICT s1 = square + size;
  T* SF_RESTRICT s2 = square + 2 * size;
  T* SF_RESTRICT s3 = square + 3 * size;
  const T* SF_RESTRICT c = b + stride;
  const T* a2 = kPair ? a + stride : a;
  const T a00 = a[0], a10 = a2[0];
  const T a01 = a[kFour ? 1 : 0], a02 = a[kFour ? 2 : 0], a03 = a[kFour ? 3 : 0];
  const T a11 = a2[kFour ? 1 : 0], a12 = a2[kFour ? 2 : 0], a13 = a2[kFour ? 3 : 0];
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) {
    const T x = b[j], y = kPair ? c[j] : T(0);
    s0[j] = (kFirst ? T(0) : s0[j]) + (a00 - x) * (a00 - x) + (kPair ? (a10 - y) * (a10 - y) : T(0));
    if (kFour) {
      s1[j] = (kFirst ? T(0) : s1[j]) + (a01 - x) * (a01 - x) + (kPair ? (a11 - y) * (a11 - y) : T(0));
      s2[j] = (kFirst ? T(0) : s2[j]) + (a02 - x) * (a02 - x) + (kPair ? (a12 - y) * (a12 - y) : T(0));
      s3[j] = (kFirst ? T(0) : s3[j]) + (a03 - x) * (a03 - x) + (kPair ? (a13 - y) * (a13 - y) : T(0));
    }
  }
}

// z is (dims, stride): points i, i + 1, ... against `size` points from `column` on.
template <bool kFour, typename T>
SF_INLINE void squared_distances(const T* z, int64_t stride, int64_t dims, int64_t i, int64_t column, int64_t size,
                                 T* square) {
  int64_t d = 0;
  if (dims % 2 != 0) {
    add_squares<kFour, false, true>(z + i, z + column, stride, size, square);
    d = 1;
  } else {
    add_squares<kFour, true, true>(z + i, z + column, stride, size, square);
    d = 2;
  }
  for (; d < dims; d += 2) {
    add_squares<kFour, true, false>(z + d * stride + i, z + d * stride + column, stride, size, square);
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

// Row r of a group on the diagonal keeps the columns behind its own point.
template <typename T>
SF_INLINE void keep_upper(const Block& block, int64_t i, int64_t rows, T* values) {
  if (!block.diagonal()) return;
  for (int64_t r = 0; r < rows; ++r) std::fill_n(values + r * block.columns, i + r - block.column + 1, T(0));
}

// Adds weight (z_i - z_j) to the gradients of points i, i + 1, ... and subtracts it from the columns'.
template <bool kFour, bool kColumns, typename T>
SF_INLINE void add_slopes(const T* SF_RESTRICT weight, const T* SF_RESTRICT z, int64_t stride, int64_t dims, int64_t i,
                          int64_t column, int64_t size, T* SF_RESTRICT slope, T* SF_RESTRICT columns) {
  const T* SF_RESTRICT w0 = weight;
  const T* SF_RESTRICT w1 = weight + size;
  const T* SF_RESTRICT w2 = weight + 2 * size;
  const T* SF_RESTRICT w3 = weight + 3 * size;
  for (int64_t d = 0; d < dims; ++d) {
    const T* SF_RESTRICT b = z + d * stride + column;
    const T* a = z + d * stride + i;
    const T a0 = a[0], a1 = a[kFour ? 1 : 0], a2 = a[kFour ? 2 : 0], a3 = a[kFour ? 3 : 0];
    T* SF_RESTRICT to = columns + d * size;
    T sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
    for (int64_t j = 0; j < size; ++j) {
      const T x = b[j];
      const T e0 = a0 - x, e1 = a1 - x, e2 = a2 - x, e3 = a3 - x;
      sum0 += w0[j] * e0;
      if (kFour) {
        sum1 += w1[j] * e1;
        sum2 += w2[j] * e2;
        sum3 += w3[j] * e3;
      }
      if (kColumns) {
        // One product at a time: each may become an fma, and then those of the rows round as they do without columns.
        T rest = to[j] - w0[j] * e0;
        if (kFour) {
          rest -= w1[j] * e1;
          rest -= w2[j] * e2;
          rest -= w3[j] * e3;
        }
        to[j] = rest;
      }
    }
    T* own = slope + d * stride + i;
    own[0] += sum0;
    if (kFour) {
      own[1] += sum1;
      own[2] += sum2;
      own[3] += sum3;
    }
  }
}

template <typename T>
SF_INLINE void flush(const T* SF_RESTRICT columns, int64_t dims, int64_t size, T* SF_RESTRICT slope, int64_t stride) {
  for (int64_t d = 0; d < dims; ++d) {
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) slope[d * stride + j] += columns[d * size + j];
  }
}

template <typename T>
struct Points {
  const T* z;  // (dims, stride)
  int64_t stride, dims;
  const Bandwidth<T>* bandwidths;
  int64_t num_bandwidths;
};

// The first unit's values become the sums over all units.
template <typename T>
SF_CLONES void sum_units(T* SF_RESTRICT memory, int64_t units, int64_t unit_size, int64_t size) {
  for (int64_t u = 1; u < units; ++u) {
    const T* SF_RESTRICT from = memory + u * unit_size;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) memory[i] += from[i];
  }
}

// Points [begin, end) of (dims, stride) sums, times `scale`, as rows of coordinates.
template <typename T>
void write_rows(const T* sums, int64_t stride, int64_t begin, int64_t end, int64_t dims, T scale, T* to,
                int64_t to_stride) {
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t d = 0; d < dims; ++d) to[(i - begin) * to_stride + d] = scale * sums[d * stride + i];
  }
}

}  // namespace
}  // namespace strucfast
