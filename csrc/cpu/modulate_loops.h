#pragma once
#include "row_sums.h"
#include "tile.h"

// The vector loops of modulate. "Rows" loops: a row is a channel, or a part of one. "Columns" loops: a row is a pixel, a
// column a channel. Half types are widened and narrowed in registers: memory is all that these loops wait for.
namespace strucfast {
namespace {

// How far ahead memory is asked for: 3 arrays at 32x32 then come at 50 instead of 45 GB/s.
constexpr int64_t kAheadBytes = 4096;

// Elements of one cache line.
template <typename T>
constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));

// A parameter beside a tile: one value per row (a channel of a contiguous x), or a vector along the row.
template <typename C>
struct Beside {
  const C* data;
  int64_t stride;  // from row to row; 0 for a vector that all rows share
  bool along_row;
};

template <typename T, bool kStream, bool kScaleAlong, bool kShiftAlong>
SF_CLONES void affine_rows(Tile<const T> x, Tile<T> y, int64_t rows, int64_t cols, Beside<Compute<T>> scale,
                           Beside<Compute<T>> shift) {
  using C = Compute<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const T* SF_RESTRICT xr = x.data + r * x.stride;
    const C* SF_RESTRICT s = scale.data + r * scale.stride;
    const C* SF_RESTRICT b = shift.data + r * shift.stride;
    const C s0 = s[0], b0 = b[0];
    write_row<kStream>(
        y.data + r * y.stride, cols, [&](int64_t j) { ask_for(xr + j + kAheadBytes / sizeof(T)); },
        [&](int64_t j) { return (kScaleAlong ? s[j] : s0) * load(xr[j]) + (kShiftAlong ? b[j] : b0); });
  }
}

template <typename T, bool kStream>
void affine(Tile<const T> x, Tile<T> y, int64_t rows, int64_t cols, Beside<Compute<T>> scale,
            Beside<Compute<T>> shift) {
  auto* const f = scale.along_row ? shift.along_row ? &affine_rows<T, kStream, true, true>
                                                    : &affine_rows<T, kStream, true, false>
                  : shift.along_row ? &affine_rows<T, kStream, false, true> : &affine_rows<T, kStream, false, false>;
  f(x, y, rows, cols, scale, shift);
}

// to = g * scale; to = g where there is no scale.
template <typename T, typename To, bool kStream, bool kAlong>
SF_CLONES void scaled_rows(Tile<const T> g, Tile<To> to, int64_t rows, int64_t cols, Beside<Compute<T>> scale) {
  using C = Compute<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const T* SF_RESTRICT gr = g.data + r * g.stride;
    const C* SF_RESTRICT s = scale.data + r * scale.stride;
    const C s0 = s[0];
    write_row<kStream>(
        to.data + r * to.stride, cols, [&](int64_t j) { ask_for(gr + j + kAheadBytes / sizeof(T)); },
        [&](int64_t j) { return (kAlong ? s[j] : s0) * load(gr[j]); });
  }
}

template <typename T, typename To>
void scaled(Tile<const T> g, Tile<To> to, int64_t rows, int64_t cols, Beside<Compute<T>> scale, bool stream) {
  auto* const f = stream ? scale.along_row ? &scaled_rows<T, To, true, true> : &scaled_rows<T, To, true, false>
                  : scale.along_row ? &scaled_rows<T, To, false, true> : &scaled_rows<T, To, false, false>;
  f(g, to, rows, cols, scale);
}

// dx = scale g if kDx, and the lanes of the sums of g x and g, for kWidth elements or, where that is 0, for `width`.
template <bool kDx, bool kStream, int64_t kWidth, typename T, typename C>
SF_INLINE void gradient_lanes(const T* SF_RESTRICT g, const T* SF_RESTRICT x, T* SF_RESTRICT dx, int64_t width,
                              const C* SF_RESTRICT scale, C* SF_RESTRICT sum_gx, C* SF_RESTRICT sum_g) {
  const int64_t size = kWidth == 0 ? width : kWidth;
  alignas(64) T line[kLine<T>];
  T* SF_RESTRICT to = kStream ? line : dx;
#pragma omp simd
  for (int64_t l = 0; l < size; ++l) {
    const C gl = load(g[l]);
    sum_gx[l] += gl * load(x[l]);
    sum_g[l] += gl;
    if (kDx) store(to + l, scale[l] * gl);
  }
  if (kDx && kStream) stream_line(line, dx);
}

// dx = scale[r] g if kDx, and sums over rows of g x and g. kCols is the length of a row where that is known, else 0.
template <bool kDx, bool kStream, int64_t kCols, typename T, typename C>
SF_INLINE void row_gradients_of(Tile<const T> g, Tile<const T> x, Tile<T> dx, int64_t rows, int64_t size,
                                const C* scale_of, C* to_gx, C* to_g) {
  // Two sets of partial sums: one would wait for the latency of each addition.
  constexpr int64_t line = kLine<T>, lanes = kLanes<C>, ahead = kAheadBytes / static_cast<int64_t>(sizeof(T));
  const int64_t cols = kCols == 0 ? size : kCols;
  C lines_gx[kBatch * lanes], lines_g[kBatch * lanes], totals_gx[kBatch], totals_g[kBatch];
  std::fill_n(lines_gx, kBatch * lanes, C(0));
  std::fill_n(lines_g, kBatch * lanes, C(0));
  for (int64_t first = 0; first < rows; first += kBatch) {
    const int64_t count = std::min(kBatch, rows - first);
    for (int64_t r = 0; r < count; ++r) {
      const T* const gr = g.data + (first + r) * g.stride;
      const T* const xr = x.data + (first + r) * x.stride;
      T* const dr = kDx ? dx.data + (first + r) * dx.stride : nullptr;
      C scale[line], gx[2 * line], gs[2 * line];
#pragma omp simd
      for (int64_t l = 0; l < line; ++l) scale[l] = kDx ? scale_of[first + r] : C(0);
#pragma omp simd
      for (int64_t l = 0; l < 2 * line; ++l) gx[l] = gs[l] = 0;
      int64_t j = 0;
      for (; j + 2 * line <= cols; j += 2 * line) {
        ask_for(gr + j + ahead);
        ask_for(xr + j + ahead);
        ask_for(gr + j + line + ahead);
        ask_for(xr + j + line + ahead);
        gradient_lanes<kDx, kStream, line>(gr + j, xr + j, dr + j, line, scale, gx, gs);
        gradient_lanes<kDx, kStream, line>(gr + j + line, xr + j + line, dr + j + line, line, scale, gx + line, gs + line);
      }
      if (j + line <= cols) {
        gradient_lanes<kDx, kStream, line>(gr + j, xr + j, dr + j, line, scale, gx, gs);
        j += line;
      }
      if (j < cols) gradient_lanes<kDx, false, 0>(gr + j, xr + j, dr + j, cols - j, scale, gx + line, gs + line);
      C* const line_gx = lines_gx + r * lanes;
      C* const line_g = lines_g + r * lanes;
#pragma omp simd
      for (int64_t l = 0; l < lanes; ++l) {
        C sum_gx = gx[l] + gx[line + l], sum_g = gs[l] + gs[line + l];
        if (line > lanes) {
          sum_gx += gx[lanes + l] + gx[2 * line - lanes + l];
          sum_g += gs[lanes + l] + gs[2 * line - lanes + l];
        }
        line_gx[l] = sum_gx;
        line_g[l] = sum_g;
      }
    }
    sum_lines(lines_gx, totals_gx);
    sum_lines(lines_g, totals_g);
    for (int64_t r = 0; r < count; ++r) {
      to_gx[first + r] += totals_gx[r];
      to_g[first + r] += totals_g[r];
    }
  }
}

template <typename T, bool kDx, bool kStream>
SF_CLONES void row_gradients_as(Tile<const T> g, Tile<const T> x, Tile<T> dx, int64_t rows, int64_t cols,
                                const Compute<T>* scale, Compute<T>* sum_gx, Compute<T>* sum_g) {
  constexpr int64_t lanes = kLanes<Compute<T>>;
  // 4x4 and 8x8 pixels: the general loop would cost more around the vectors than in them.
  if (cols == lanes) return row_gradients_of<kDx, false, lanes>(g, x, dx, rows, cols, scale, sum_gx, sum_g);
  if (cols == 4 * lanes) return row_gradients_of<kDx, false, 4 * lanes>(g, x, dx, rows, cols, scale, sum_gx, sum_g);
  row_gradients_of<kDx, kStream, 0>(g, x, dx, rows, cols, scale, sum_gx, sum_g);
}

// One cache line of columns, or `width` of them: dx = scale[j] g if kDx, and sums over the rows.
template <bool kDx, bool kStream, bool kFull, typename T, typename C>
SF_INLINE void gradient_columns(Tile<const T> g, Tile<const T> x, Tile<T> dx, int64_t rows, int64_t col, int64_t width,
                                const C* SF_RESTRICT scale_of, C* SF_RESTRICT to_gx, C* SF_RESTRICT to_g) {
  constexpr int64_t line = kLine<T>;
  const int64_t size = kFull ? line : width;
  C scale[line], gx[line], gs[line];
#pragma omp simd
  for (int64_t l = 0; l < size; ++l) {
    scale[l] = kDx ? scale_of[col + l] : C(0);
    gx[l] = gs[l] = 0;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const T* const gr = g.data + r * g.stride + col;
    const T* const xr = x.data + r * x.stride + col;
    T* const dr = kDx ? dx.data + r * dx.stride + col : nullptr;
    ask_for(gr + rows * g.stride);
    ask_for(xr + rows * x.stride);
    gradient_lanes<kDx, kStream, kFull ? line : 0>(gr, xr, dr, size, scale, gx, gs);
  }
#pragma omp simd
  for (int64_t l = 0; l < size; ++l) {
    to_gx[col + l] += gx[l];
    to_g[col + l] += gs[l];
  }
}

template <typename T, bool kDx, bool kStream>
SF_CLONES void column_gradients_as(Tile<const T> g, Tile<const T> x, Tile<T> dx, int64_t rows, int64_t cols,
                                   const Compute<T>* scale, Compute<T>* sum_gx, Compute<T>* sum_g) {
  constexpr int64_t line = kLine<T>;
  int64_t col = 0;
  for (; col + line <= cols; col += line) {
    gradient_columns<kDx, kStream, true>(g, x, dx, rows, col, line, scale, sum_gx, sum_g);
  }
  if (col < cols) gradient_columns<kDx, false, false>(g, x, dx, rows, col, cols - col, scale, sum_gx, sum_g);
}

// Whole lines can be streamed where every row begins with one.
template <typename T>
bool on_lines(const Tile<T>& to) {
  return reinterpret_cast<uintptr_t>(to.data) % 64 == 0 && to.stride % kLine<T> == 0;
}

// Sums over the rows or columns of a tile, and dx where it has data.
template <typename T>
void gradients(bool columns, Tile<const T> g, Tile<const T> x, Tile<T> dx, int64_t rows, int64_t cols,
               const Compute<T>* scale, Compute<T>* sum_gx, Compute<T>* sum_g, bool stream) {
  auto* f = columns ? &column_gradients_as<T, false, false> : &row_gradients_as<T, false, false>;
  if (dx.data != nullptr) {
    f = stream && on_lines(dx) ? columns ? &column_gradients_as<T, true, true> : &row_gradients_as<T, true, true>
        : columns ? &column_gradients_as<T, true, false> : &row_gradients_as<T, true, false>;
  }
  f(g, x, dx, rows, cols, scale, sum_gx, sum_g);
}

// to = g x
template <typename T, typename To>
SF_CLONES void product_rows(Tile<const T> g, Tile<const T> x, Tile<To> to, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* SF_RESTRICT gr = g.data + r * g.stride;
    const T* SF_RESTRICT xr = x.data + r * x.stride;
    write_row<false>(to.data + r * to.stride, cols, [](int64_t) {}, [&](int64_t j) { return load(gr[j]) * load(xr[j]); });
  }
}

}  // namespace
}  // namespace strucfast
