#pragma once
#include <cmath>

#include "moments.h"
#include "row_sums.h"
#include "tile.h"

// The vector loops of adain. In all of them d = (x - first) - mean, and h is the gradient g times a per-pixel scale, or
// g itself. "Rows" loops: a row is a channel, or a part of one. "Columns" loops: a row is a pixel, a column a channel.
namespace strucfast {
namespace {

// Per-pixel operands of a tile; without data where there are none.
template <typename C>
struct Pixels {
  Tile<const C> scale{}, shift{};
  Tile<C> dscale{};
};

// Of `count` rows or columns.
template <typename C, int64_t kCount>
struct Slices {
  C first[kCount], mean[kCount], rstd[kCount];
  // Forward: y = d * slope + shift, or with a per-pixel scale y = d * slope * scale + shift.
  C slope[kCount], shift[kCount];
  // Backward: sums of g, h and h d, and dx = p (h - mean_h) + q d.
  C g[kCount], h[kCount], hd[kCount];
  C p[kCount], mean_h[kCount], q[kCount];
};

// Lanes of the sums over one row of d (its squares, if kSquares), written to `line`. kCols is the length of the row
// where that is known, else 0.
template <bool kSquares, int64_t kCols, typename C>
SF_INLINE void moment_line(const C* SF_RESTRICT x, int64_t size, C first, C mean, C* SF_RESTRICT line) {
  constexpr int64_t lanes = kLanes<C>;
  const int64_t cols = kCols == 0 ? size : kCols;
  C even[lanes], odd[lanes];
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) even[l] = odd[l] = 0;
  int64_t j = 0;
  for (; j + 2 * lanes <= cols; j += 2 * lanes) {
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) {
      const C d0 = (x[j + l] - first) - mean, d1 = (x[j + lanes + l] - first) - mean;
      even[l] += kSquares ? d0 * d0 : d0;
      odd[l] += kSquares ? d1 * d1 : d1;
    }
  }
  for (; j + lanes <= cols; j += lanes) {
#pragma omp simd
    for (int64_t l = 0; l < lanes; ++l) {
      const C d = (x[j + l] - first) - mean;
      even[l] += kSquares ? d * d : d;
    }
  }
  if (j < cols) {
#pragma omp simd
    for (int64_t l = 0; l < cols - j; ++l) {
      const C d = (x[j + l] - first) - mean;
      odd[l] += kSquares ? d * d : d;
    }
  }
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) line[l] = even[l] + odd[l];
}

template <int64_t kCols, typename C>
SF_INLINE void row_statistics_of(Tile<const C> x, int64_t rows, int64_t cols, C eps, C* SF_RESTRICT first,
                                 C* SF_RESTRICT mean, C* SF_RESTRICT rstd) {
  C lines[kBatch * kLanes<C>], sums[kBatch];
  const C each = C(1) / static_cast<C>(cols);
  for (int64_t r = 0; r < rows; ++r) {
    first[r] = x.data[r * x.stride];
    moment_line<false, kCols>(x.data + r * x.stride, cols, first[r], C(0), lines + r * kLanes<C>);
  }
  for (int64_t i = rows * kLanes<C>; i < kBatch * kLanes<C>; ++i) lines[i] = 0;
  sum_lines(lines, sums);
#pragma omp simd
  for (int64_t r = 0; r < kBatch; ++r) mean[r] = sums[r] * each;
  for (int64_t r = 0; r < rows; ++r) {
    moment_line<true, kCols>(x.data + r * x.stride, cols, first[r], mean[r], lines + r * kLanes<C>);
  }
  sum_lines(lines, sums);
#pragma omp simd
  for (int64_t r = 0; r < kBatch; ++r) rstd[r] = C(1) / std::sqrt(sums[r] * each + eps);
}

// Statistics of up to kBatch whole rows that stay in L1. For rows of one or four vectors (4x4 and 8x8 pixels in float)
// the general loop would cost more around the vectors than in them.
template <typename C>
SF_CLONES void row_statistics(Tile<const C> x, int64_t rows, int64_t cols, C eps, C* first, C* mean, C* rstd) {
  if (cols == kLanes<C>) return row_statistics_of<kLanes<C>>(x, rows, cols, eps, first, mean, rstd);
  if (cols == 4 * kLanes<C>) return row_statistics_of<4 * kLanes<C>>(x, rows, cols, eps, first, mean, rstd);
  row_statistics_of<0>(x, rows, cols, eps, first, mean, rstd);
}

// Asks for the cache lines of a row that comes later, so that memory works while this one is computed.
template <typename C>
SF_INLINE void ask_for_row(const C* row, int64_t cols) {
  for (int64_t j = 0; j < cols; j += kLanes<C>) ask_for(row + j);
}

template <bool kScale, bool kShift, int64_t kCols, typename C>
SF_INLINE void apply_rows_of(Tile<const C> x, Tile<C> y, const Pixels<C>& pixels, int64_t rows, int64_t size,
                             int64_t ahead, const C* first_of, const C* mean_of, const C* slope_of, const C* shift_of) {
  const int64_t cols = kCols == 0 ? size : kCols;
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x.data + r * x.stride;
    C* SF_RESTRICT yr = y.data + r * y.stride;
    const C* SF_RESTRICT sr = kScale ? pixels.scale.data + r * pixels.scale.stride : nullptr;
    const C* SF_RESTRICT br = kShift ? pixels.shift.data + r * pixels.shift.stride : nullptr;
    const C first = first_of[r], mean = mean_of[r], slope = slope_of[r], shift = shift_of[r];
    if (kCols == 0 && ahead != 0) ask_for_row(xr + ahead, cols);
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) {
      const C scaled = ((xr[j] - first) - mean) * slope;
      yr[j] = (kScale ? scaled * sr[j] : scaled) + (kShift ? br[j] : shift);
    }
  }
}

template <typename C, bool kScale, bool kShift>
SF_CLONES void apply_rows(Tile<const C> x, Tile<C> y, Pixels<C> pixels, int64_t rows, int64_t cols, int64_t ahead,
                          const C* first, const C* mean, const C* slope, const C* shift) {
  if (!kScale && !kShift && cols == kLanes<C>) {
    return apply_rows_of<kScale, kShift, kLanes<C>>(x, y, pixels, rows, cols, ahead, first, mean, slope, shift);
  }
  apply_rows_of<kScale, kShift, 0>(x, y, pixels, rows, cols, ahead, first, mean, slope, shift);
}

// Lanes of the sums over one row of g, h and h d.
template <bool kScale, int64_t kCols, typename C>
SF_INLINE void gradient_line(const C* SF_RESTRICT x, const C* SF_RESTRICT g, const C* SF_RESTRICT scale,
                             C* SF_RESTRICT dscale, int64_t size, C first, C mean, C rstd, C* SF_RESTRICT line_g,
                             C* SF_RESTRICT line_h, C* SF_RESTRICT line_hd) {
  const int64_t cols = kCols == 0 ? size : kCols;
  constexpr int64_t lanes = kLanes<C>;
  C sum_g[lanes], sum_h[lanes], sum_hd[lanes], odd_g[lanes], odd_hd[lanes];
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) sum_g[l] = sum_h[l] = sum_hd[l] = odd_g[l] = odd_hd[l] = 0;
  int64_t j = 0;
  if (!kScale) {
    for (; j + 2 * lanes <= cols; j += 2 * lanes) {
#pragma omp simd
      for (int64_t l = 0; l < lanes; ++l) {
        const C d0 = (x[j + l] - first) - mean, d1 = (x[j + lanes + l] - first) - mean;
        sum_g[l] += g[j + l];
        odd_g[l] += g[j + lanes + l];
        sum_hd[l] += g[j + l] * d0;
        odd_hd[l] += g[j + lanes + l] * d1;
      }
    }
  }
  for (; j < cols; j += lanes) {
    // Written twice: only a constant width is one vector.
    const auto add = [&](int64_t l) {
      const C d = (x[j + l] - first) - mean, gl = g[j + l], hl = kScale ? gl * scale[j + l] : gl;
      if (kScale && dscale != nullptr) dscale[j + l] = gl * (d * rstd);
      sum_g[l] += gl;
      if (kScale) sum_h[l] += hl;
      sum_hd[l] += hl * d;
    };
    if (j + lanes <= cols) {
#pragma omp simd
      for (int64_t l = 0; l < lanes; ++l) add(l);
    } else {
#pragma omp simd
      for (int64_t l = 0; l < cols - j; ++l) add(l);
    }
  }
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) {
    line_g[l] = sum_g[l] + odd_g[l];
    line_hd[l] = sum_hd[l] + odd_hd[l];
  }
  if (kScale) copy_lanes(sum_h, line_h);
}

// The same for rows of more than four vectors, for which adding up lanes is little of the work.
template <typename C>
SF_INLINE void long_gradient_rows(Tile<const C> x, Tile<const C> g, int64_t rows, int64_t cols, const C* first_of,
                                  const C* mean_of, C* SF_RESTRICT sum_g, C* SF_RESTRICT sum_h,
                                  C* SF_RESTRICT sum_hd) {
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x.data + r * x.stride;
    const C* SF_RESTRICT gr = g.data + r * g.stride;
    const C first = first_of[r], mean = mean_of[r];
    C total = 0, product = 0;
#pragma omp simd reduction(+ : total, product)
    for (int64_t j = 0; j < cols; ++j) {
      total += gr[j];
      product += gr[j] * ((xr[j] - first) - mean);
    }
    sum_g[r] = sum_h[r] = total;
    sum_hd[r] = product;
  }
}

template <bool kScale, int64_t kCols, typename C>
SF_INLINE void gradient_rows_of(Tile<const C> x, Tile<const C> g, const Pixels<C>& pixels, int64_t rows, int64_t cols,
                                const C* first, const C* mean, const C* rstd, C* SF_RESTRICT sum_g,
                                C* SF_RESTRICT sum_h, C* SF_RESTRICT sum_hd) {
  constexpr int64_t lanes = kLanes<C>;
  C lines[3 * kBatch * lanes];
  C *const line_g = lines, *const line_hd = lines + kBatch * lanes, *const line_h = lines + 2 * kBatch * lanes;
  for (int64_t r = 0; r < rows; ++r) {
    const C* const sr = kScale ? pixels.scale.data + r * pixels.scale.stride : nullptr;
    C* const dr = kScale && pixels.dscale.data != nullptr ? pixels.dscale.data + r * pixels.dscale.stride : nullptr;
    gradient_line<kScale, kCols>(x.data + r * x.stride, g.data + r * g.stride, sr, dr, cols, first[r], mean[r], rstd[r],
                          line_g + r * lanes, line_h + r * lanes, line_hd + r * lanes);
  }
  for (int64_t i = rows * lanes; i < kBatch * lanes; ++i) line_g[i] = line_h[i] = line_hd[i] = 0;
  sum_lines(line_g, sum_g);
  sum_lines(line_hd, sum_hd);
  if (kScale) {
    sum_lines(line_h, sum_h);
  } else {
    for (int64_t r = 0; r < kBatch; ++r) sum_h[r] = sum_g[r];
  }
}

// Sums of up to kBatch rows; those of h are g's where the scale is per channel.
template <typename C, bool kScale>
SF_CLONES void gradient_rows(Tile<const C> x, Tile<const C> g, Pixels<C> pixels, int64_t rows, int64_t cols,
                             const C* first, const C* mean, const C* rstd, C* sum_g, C* sum_h, C* sum_hd) {
  if (!kScale && cols == kLanes<C>) {
    return gradient_rows_of<kScale, kLanes<C>>(x, g, pixels, rows, cols, first, mean, rstd, sum_g, sum_h, sum_hd);
  }
  if (!kScale && cols == 4 * kLanes<C>) {
    return gradient_rows_of<kScale, 4 * kLanes<C>>(x, g, pixels, rows, cols, first, mean, rstd, sum_g, sum_h, sum_hd);
  }
  if (!kScale && cols > 4 * kLanes<C>) {
    return long_gradient_rows(x, g, rows, cols, first, mean, sum_g, sum_h, sum_hd);
  }
  gradient_rows_of<kScale, 0>(x, g, pixels, rows, cols, first, mean, rstd, sum_g, sum_h, sum_hd);
}

template <bool kScale, int64_t kCols, typename C>
SF_INLINE void finish_rows_of(Tile<const C> x, Tile<const C> g, const Pixels<C>& pixels, Tile<C> dx, int64_t rows,
                              int64_t size, int64_t ahead, const C* first_of, const C* mean_of, const C* p_of,
                              const C* mean_h_of, const C* q_of) {
  const int64_t cols = kCols == 0 ? size : kCols;
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x.data + r * x.stride;
    const C* SF_RESTRICT gr = g.data + r * g.stride;
    const C* SF_RESTRICT sr = kScale ? pixels.scale.data + r * pixels.scale.stride : nullptr;
    C* SF_RESTRICT to = dx.data + r * dx.stride;
    const C first = first_of[r], mean = mean_of[r], p = p_of[r], mean_h = mean_h_of[r], q = q_of[r];
    if (kCols == 0 && ahead != 0) {
      ask_for_row(xr + ahead, cols);
      ask_for_row(gr + ahead, cols);
    }
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) {
      const C h = kScale ? gr[j] * sr[j] : gr[j];
      to[j] = p * (h - mean_h) + q * ((xr[j] - first) - mean);
    }
  }
}

template <typename C, bool kScale>
SF_CLONES void finish_rows(Tile<const C> x, Tile<const C> g, Pixels<C> pixels, Tile<C> dx, int64_t rows, int64_t cols,
                           int64_t ahead, const C* first, const C* mean, const C* p, const C* mean_h, const C* q) {
  if (!kScale && cols == kLanes<C>) {
    return finish_rows_of<kScale, kLanes<C>>(x, g, pixels, dx, rows, cols, ahead, first, mean, p, mean_h, q);
  }
  finish_rows_of<kScale, 0>(x, g, pixels, dx, rows, cols, ahead, first, mean, p, mean_h, q);
}

// One cache line of channels down all rows of the tile, its coefficients in registers.
template <bool kScale, bool kShift, bool kFull, typename C>
SF_INLINE void apply_lanes(Tile<const C> x, Tile<C> y, const Pixels<C>& pixels, int64_t rows, int64_t col,
                           int64_t width, int64_t ahead, const C* first_of, const C* mean_of, const C* slope_of,
                           const C* shift_of) {
  const int64_t lanes = kFull ? kLanes<C> : width;
  C first[kLanes<C>], mean[kLanes<C>], slope[kLanes<C>], shift[kLanes<C>];
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    first[j] = first_of[col + j];
    mean[j] = mean_of[col + j];
    slope[j] = slope_of[col + j];
    shift[j] = kShift ? C(0) : shift_of[col + j];
  }
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x.data + r * x.stride + col;
    C* SF_RESTRICT yr = y.data + r * y.stride + col;
    const C* SF_RESTRICT sr = kScale ? pixels.scale.data + r * pixels.scale.stride + col : nullptr;
    const C* SF_RESTRICT br = kShift ? pixels.shift.data + r * pixels.shift.stride + col : shift;
    if (ahead != 0) ask_for(yr + ahead);
#pragma omp simd
    for (int64_t j = 0; j < lanes; ++j) {
      const C scaled = ((xr[j] - first[j]) - mean[j]) * slope[j];
      yr[j] = (kScale ? scaled * sr[j] : scaled) + br[j];
    }
  }
}

template <typename C, bool kScale, bool kShift>
SF_CLONES void apply_columns(Tile<const C> x, Tile<C> y, Pixels<C> pixels, int64_t rows, int64_t cols, int64_t ahead,
                             const C* first, const C* mean, const C* slope, const C* shift) {
  int64_t col = 0;
  for (; col + kLanes<C> <= cols; col += kLanes<C>) {
    apply_lanes<kScale, kShift, true>(x, y, pixels, rows, col, kLanes<C>, ahead, first, mean, slope, shift);
  }
  if (col < cols) {
    apply_lanes<kScale, kShift, false>(x, y, pixels, rows, col, cols - col, ahead, first, mean, slope, shift);
  }
}

template <bool kScale, bool kFull, typename C>
SF_INLINE void gradient_lanes(Tile<const C> x, Tile<const C> g, Pixels<C> pixels, int64_t rows, int64_t col,
                              int64_t width, const C* SF_RESTRICT first_of, const C* SF_RESTRICT mean_of,
                              const C* SF_RESTRICT rstd_of, C* SF_RESTRICT to_g, C* SF_RESTRICT to_h,
                              C* SF_RESTRICT to_hd) {
  const int64_t lanes = kFull ? kLanes<C> : width;
  C first[kLanes<C>], mean[kLanes<C>], rstd[kLanes<C>], sum_g[kLanes<C>], sum_h[kLanes<C>], sum_hd[kLanes<C>];
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    first[j] = first_of[col + j];
    mean[j] = mean_of[col + j];
    rstd[j] = rstd_of[col + j];
    sum_g[j] = sum_h[j] = sum_hd[j] = 0;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x.data + r * x.stride + col;
    const C* SF_RESTRICT gr = g.data + r * g.stride + col;
    const C* SF_RESTRICT sr = kScale ? pixels.scale.data + r * pixels.scale.stride + col : nullptr;
#pragma omp simd
    for (int64_t j = 0; j < lanes; ++j) {
      const C d = (xr[j] - first[j]) - mean[j], h = kScale ? gr[j] * sr[j] : gr[j];
      sum_g[j] += gr[j];
      if (kScale) sum_h[j] += h;
      sum_hd[j] += h * d;
    }
    if (kScale && pixels.dscale.data != nullptr) {
      C* SF_RESTRICT dr = pixels.dscale.data + r * pixels.dscale.stride + col;
#pragma omp simd
      for (int64_t j = 0; j < lanes; ++j) dr[j] = gr[j] * (((xr[j] - first[j]) - mean[j]) * rstd[j]);
    }
  }
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    to_g[col + j] += sum_g[j];
    to_h[col + j] += kScale ? sum_h[j] : sum_g[j];
    to_hd[col + j] += sum_hd[j];
  }
}

template <typename C, bool kScale>
SF_CLONES void gradient_columns(Tile<const C> x, Tile<const C> g, Pixels<C> pixels, int64_t rows, int64_t cols,
                                const C* first, const C* mean, const C* rstd, C* sum_g, C* sum_h, C* sum_hd) {
  int64_t col = 0;
  for (; col + kLanes<C> <= cols; col += kLanes<C>) {
    gradient_lanes<kScale, true>(x, g, pixels, rows, col, kLanes<C>, first, mean, rstd, sum_g, sum_h, sum_hd);
  }
  if (col < cols) {
    gradient_lanes<kScale, false>(x, g, pixels, rows, col, cols - col, first, mean, rstd, sum_g, sum_h, sum_hd);
  }
}

template <bool kScale, bool kFull, typename C>
SF_INLINE void finish_lanes(Tile<const C> x, Tile<const C> g, const Pixels<C>& pixels, Tile<C> dx, int64_t rows,
                            int64_t col, int64_t width, int64_t ahead, const C* first_of, const C* mean_of,
                            const C* p_of, const C* mean_h_of, const C* q_of) {
  const int64_t lanes = kFull ? kLanes<C> : width;
  C first[kLanes<C>], mean[kLanes<C>], p[kLanes<C>], mean_h[kLanes<C>], q[kLanes<C>];
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    first[j] = first_of[col + j];
    mean[j] = mean_of[col + j];
    p[j] = p_of[col + j];
    mean_h[j] = mean_h_of[col + j];
    q[j] = q_of[col + j];
  }
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x.data + r * x.stride + col;
    const C* SF_RESTRICT gr = g.data + r * g.stride + col;
    const C* SF_RESTRICT sr = kScale ? pixels.scale.data + r * pixels.scale.stride + col : nullptr;
    C* SF_RESTRICT to = dx.data + r * dx.stride + col;
    if (ahead != 0) ask_for(to + ahead);
#pragma omp simd
    for (int64_t j = 0; j < lanes; ++j) {
      const C h = kScale ? gr[j] * sr[j] : gr[j];
      to[j] = p[j] * (h - mean_h[j]) + q[j] * ((xr[j] - first[j]) - mean[j]);
    }
  }
}

template <typename C, bool kScale>
SF_CLONES void finish_columns(Tile<const C> x, Tile<const C> g, Pixels<C> pixels, Tile<C> dx, int64_t rows,
                              int64_t cols, int64_t ahead, const C* first, const C* mean, const C* p, const C* mean_h,
                              const C* q) {
  int64_t col = 0;
  for (; col + kLanes<C> <= cols; col += kLanes<C>) {
    finish_lanes<kScale, true>(x, g, pixels, dx, rows, col, kLanes<C>, ahead, first, mean, p, mean_h, q);
  }
  if (col < cols) {
    finish_lanes<kScale, false>(x, g, pixels, dx, rows, col, cols - col, ahead, first, mean, p, mean_h, q);
  }
}

// From sums over `pixels` to the coefficients of dx, and dscale of a per-channel scale left in `hd`.
template <typename C>
SF_CLONES void coefficients(int64_t count, int64_t pixels, const C* SF_RESTRICT rstd, const C* SF_RESTRICT scale,
                            const C* SF_RESTRICT h, C* SF_RESTRICT hd, C* SF_RESTRICT p, C* SF_RESTRICT mean_h,
                            C* SF_RESTRICT q) {
  const C each = pixels == 0 ? C(0) : C(1) / static_cast<C>(pixels);
  // A slice of one pixel is its own mean: exactly no gradient, whatever the compiler contracts below.
  const C several = pixels == 1 ? C(0) : C(1);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    hd[i] *= rstd[i];
    p[i] = several * scale[i] * rstd[i];
    mean_h[i] = h[i] * each;
    // In this order nothing overflows where eps is tiny.
    q[i] = -(p[i] * (hd[i] * each)) * rstd[i];
  }
}

}  // namespace
}  // namespace strucfast
