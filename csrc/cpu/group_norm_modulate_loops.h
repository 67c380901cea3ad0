#pragma once
#include "../common/activation.h"
#include "moments.h"
#include "row_sums.h"
#include "tile.h"

// The vector loops of group_norm_modulate. In all of them d = x - mean, u = slope * d + offset (the norm and its affine),
// m = act(u), y = scale * m + shift, and t = grad * act'(u), which the scale multiplies only once it is summed
// (per-pixel scales: at once). "Rows" loops: a row is a channel. "Columns" loops: a row is a pixel, a column a channel.
namespace strucfast {
namespace {

// A group or a channel with a NaN has NaN (or infinite) coefficients. They make its results NaN, so that the loops need
// not: 0 to add to the scale, or NaN. Per-pixel scales have their own loops, which keep NaN.
template <typename C>
SF_INLINE C poison(C slope, C offset) {
  return slope * C(0) + offset * C(0);
}

template <bool kPixel>
constexpr Nan kNanOf = kPixel ? Nan::kKeep : Nan::kIgnore;

template <typename C>
struct RowCoefficients {
  C slope, offset, scale, shift;
};

template <typename C>
struct RowSums {
  C of[4];  // g, gm, t, td
};

// Arrays over the channels of a block.
template <typename C>
struct Columns {
  C *mean, *slope, *offset, *scale, *shift, *weight;
  C *g, *gm, *t, *td;
  static constexpr int64_t kArrays = 10;
};

// Elements computed between two rounds of asking in the forward, and how far ahead the backward asks for grad, x and t
// (0.78 of the time at 8x8, 0.95 from 16x16 on).
constexpr int64_t kStep = 256;
constexpr int64_t kAhead = 1024;

// One row of the forward; kCols is its length where that is known, else 0. The line of x `ahead` elements further on is
// asked for, unless that is 0.
template <Activation A, typename C, bool kPixel, int64_t kCols>
SF_INLINE void forward_row(const C* SF_RESTRICT x, C* SF_RESTRICT y, const C* SF_RESTRICT scale,
                           const C* SF_RESTRICT shift, int64_t cols, int64_t ahead, C mean, const RowCoefficients<C>& k) {
  const int64_t size = kCols == 0 ? cols : kCols;
  for (int64_t begin = 0; begin < size; begin += kStep) {
    const int64_t end = kCols == 0 ? std::min(size, begin + kStep) : kCols;
    if (ahead != 0) {
      for (int64_t j = begin; j < end; j += kLanes<C>) ask_for(x + j + ahead);
    }
#pragma omp simd
    for (int64_t j = begin; j < end; ++j) {
      const C m = activate<A, kNanOf<kPixel>>((x[j] - mean) * k.slope + k.offset);
      y[j] = m * (kPixel ? scale[j] : k.scale) + (kPixel ? shift[j] : k.shift);
    }
  }
}

template <Activation A, typename C, bool kPixel>
SF_CLONES void forward_rows(Tile<const C> x, Tile<C> y, Tile<const C> scale, Tile<const C> shift, int64_t rows,
                            int64_t cols, int64_t ahead, C mean, const RowCoefficients<C>* coefficients) {
  // 4x4 pixels in float: the general loop would cost more around the one vector than in it.
  if (!kPixel && cols == kLanes<C>) {
    for (int64_t r = 0; r < rows; ++r) {
      forward_row<A, C, false, kLanes<C>>(x.data + r * x.stride, y.data + r * y.stride, nullptr, nullptr, cols, ahead,
                                          mean, coefficients[r]);
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const C* const sr = kPixel ? scale.data + r * scale.stride : nullptr;
    const C* const br = kPixel ? shift.data + r * shift.stride : nullptr;
    forward_row<A, C, kPixel, 0>(x.data + r * x.stride, y.data + r * y.stride, sr, br, cols, ahead, mean,
                                 coefficients[r]);
  }
}

// One cache line of a row of the backward, added to the lanes of its four sums.
template <Activation A, typename C, bool kPixel, bool kFull>
SF_INLINE void backward_line(const C* SF_RESTRICT x, const C* SF_RESTRICT g, C* SF_RESTRICT t, const C* SF_RESTRICT scale,
                             C* SF_RESTRICT gm, int64_t width, C mean, C slope, C offset, C* SF_RESTRICT sum_g,
                             C* SF_RESTRICT sum_gm, C* SF_RESTRICT sum_t, C* SF_RESTRICT sum_td) {
  const int64_t lanes = kFull ? kLanes<C> : width;
#pragma omp simd
  for (int64_t l = 0; l < lanes; ++l) {
    const C d = x[l] - mean;
    const C gl = g[l];
    const ValueAndSlope<C> act = activate_with_slope<A, kNanOf<kPixel>>(d * slope + offset);
    const C tl = gl * act.slope * (kPixel ? scale[l] : C(1));
    if (kPixel) gm[l] = gl * act.value;
    t[l] = tl;
    sum_g[l] += gl;
    sum_gm[l] += gl * act.value;
    sum_t[l] += tl;
    sum_td[l] += tl * d;
  }
}

// Rows of one tile; kCols is their length where that is known, else 0.
template <Activation A, bool kPixel, int64_t kCols, typename C>
SF_INLINE void backward_rows_of(Tile<const C> x, Tile<const C> g, Tile<C> t, Tile<const C> scale, Tile<C> gm,
                                int64_t rows, int64_t size, C mean, const RowCoefficients<C>* coefficients,
                                RowSums<C>* sums) {
  constexpr int64_t batch = 8, lanes = kLanes<C>;
  const int64_t cols = kCols == 0 ? size : kCols;
  // Four lines for each row.
  C lines[batch * 4 * lanes], totals[batch * 4];
  std::fill_n(lines, batch * 4 * lanes, C(0));
  for (int64_t first = 0; first < rows; first += batch) {
    const int64_t last = std::min(rows, first + batch);
    for (int64_t r = first; r < last; ++r) {
      const C *const xr = x.data + r * x.stride, *const gr = g.data + r * g.stride;
      C* const tr = t.data + r * t.stride;
      const C* const sr = kPixel ? scale.data + r * scale.stride : nullptr;
      C* const mr = kPixel ? gm.data + r * gm.stride : nullptr;
      const C slope = coefficients[r].slope, offset = coefficients[r].offset;
      C sum_g[lanes], sum_gm[lanes], sum_t[lanes], sum_td[lanes];
#pragma omp simd
      for (int64_t l = 0; l < lanes; ++l) sum_g[l] = sum_gm[l] = sum_t[l] = sum_td[l] = 0;
      int64_t j = 0;
      for (; j + lanes <= cols; j += lanes) {
        ask_for(xr + j + kAhead);
        ask_for(gr + j + kAhead);
        ask_for(tr + j + kAhead);
        backward_line<A, C, kPixel, true>(xr + j, gr + j, tr + j, kPixel ? sr + j : nullptr, kPixel ? mr + j : nullptr,
                                          lanes, mean, slope, offset, sum_g, sum_gm, sum_t, sum_td);
      }
      if (j < cols) {
        backward_line<A, C, kPixel, false>(xr + j, gr + j, tr + j, kPixel ? sr + j : nullptr, kPixel ? mr + j : nullptr,
                                           cols - j, mean, slope, offset, sum_g, sum_gm, sum_t, sum_td);
      }
      C* const line = lines + (r - first) * 4 * lanes;
      copy_lanes(sum_g, line);
      copy_lanes(sum_gm, line + lanes);
      copy_lanes(sum_t, line + 2 * lanes);
      copy_lanes(sum_td, line + 3 * lanes);
    }
    sum_lines<4 * batch>(lines, totals);
    for (int64_t i = 0; i < 4 * (last - first); ++i) sums[first + i / 4].of[i % 4] += totals[i];
  }
}

template <Activation A, typename C, bool kPixel>
SF_CLONES void backward_rows(Tile<const C> x, Tile<const C> g, Tile<C> t, Tile<const C> scale, Tile<C> gm, int64_t rows,
                             int64_t cols, C mean, const RowCoefficients<C>* coefficients, RowSums<C>* sums) {
  if (!kPixel && cols == kLanes<C>) {
    return backward_rows_of<A, kPixel, kLanes<C>>(x, g, t, scale, gm, rows, cols, mean, coefficients, sums);
  }
  backward_rows_of<A, kPixel, 0>(x, g, t, scale, gm, rows, cols, mean, coefficients, sums);
}

// dx = p t + q d + k; p = p_of[r].
template <typename C>
SF_CLONES void finish_rows(Tile<const C> x, Tile<const C> t, Tile<C> dx, int64_t rows, int64_t cols, C mean,
                           const C* p_of, C q, C k) {
  for (int64_t r = 0; r < rows; ++r) {
    const C* xr = x.data + r * x.stride;
    const C* tr = t.data + r * t.stride;
    C* to = dx.data + r * dx.stride;
    const C p = p_of[r];
    // t may be dx itself; element j only depends on element j.
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) to[j] = p * tr[j] + (q * (xr[j] - mean) + k);
  }
}

// One cache line of channels, its coefficients in registers, down all rows of the tile.
template <Activation A, typename C, bool kPixel, bool kFull>
SF_INLINE void forward_lanes(Tile<const C> x, Tile<C> y, Tile<const C> scale, Tile<const C> shift, int64_t rows,
                             int64_t col, int64_t width, bool ask, const Columns<C>& k) {
  const int64_t lanes = kFull ? kLanes<C> : width;
  C mean[kLanes<C>], slope[kLanes<C>], offset[kLanes<C>], s[kLanes<C>], b[kLanes<C>];
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    mean[j] = k.mean[col + j];
    slope[j] = k.slope[col + j];
    offset[j] = k.offset[col + j];
    s[j] = k.scale[col + j];
    b[j] = k.shift[col + j];
  }
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x.data + r * x.stride + col;
    C* SF_RESTRICT yr = y.data + r * y.stride + col;
    const C* SF_RESTRICT sr = kPixel ? scale.data + r * scale.stride + col : s;
    const C* SF_RESTRICT br = kPixel ? shift.data + r * shift.stride + col : b;
    if (ask) ask_for(yr + rows * y.stride);
#pragma omp simd
    for (int64_t j = 0; j < lanes; ++j) {
      yr[j] = activate<A, kNanOf<kPixel>>((xr[j] - mean[j]) * slope[j] + offset[j]) * sr[j] + br[j];
    }
  }
}

template <Activation A, typename C, bool kPixel>
SF_CLONES void forward_columns(Tile<const C> x, Tile<C> y, Tile<const C> scale, Tile<const C> shift, int64_t rows,
                               int64_t cols, bool ask, const Columns<C>& k) {
  int64_t col = 0;
  for (; col + kLanes<C> <= cols; col += kLanes<C>) {
    forward_lanes<A, C, kPixel, true>(x, y, scale, shift, rows, col, kLanes<C>, ask, k);
  }
  if (col < cols) forward_lanes<A, C, kPixel, false>(x, y, scale, shift, rows, col, cols - col, ask, k);
}

template <Activation A, typename C, bool kPixel, bool kFull>
SF_INLINE void backward_lanes(Tile<const C> x, Tile<const C> g, Tile<C> t, Tile<const C> scale, Tile<C> gm, int64_t rows,
                              int64_t col, int64_t width, bool ask, const Columns<C>& k) {
  const int64_t lanes = kFull ? kLanes<C> : width;
  C mean[kLanes<C>], slope[kLanes<C>], offset[kLanes<C>];
  C sum_g[kLanes<C>], sum_gm[kLanes<C>], sum_t[kLanes<C>], sum_td[kLanes<C>];
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    mean[j] = k.mean[col + j];
    slope[j] = k.slope[col + j];
    offset[j] = k.offset[col + j];
    sum_g[j] = sum_gm[j] = sum_t[j] = sum_td[j] = 0;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x.data + r * x.stride + col;
    const C* SF_RESTRICT gr = g.data + r * g.stride + col;
    C* SF_RESTRICT tr = t.data + r * t.stride + col;
    const C* SF_RESTRICT sr = kPixel ? scale.data + r * scale.stride + col : nullptr;
    C* SF_RESTRICT mr = kPixel ? gm.data + r * gm.stride + col : nullptr;
    if (ask) {
      ask_for(xr + rows * x.stride);
      ask_for(gr + rows * g.stride);
      ask_for(tr + rows * t.stride);
    }
#pragma omp simd
    for (int64_t j = 0; j < lanes; ++j) {
      const C d = xr[j] - mean[j];
      const C gj = gr[j];
      const ValueAndSlope<C> act = activate_with_slope<A, kNanOf<kPixel>>(d * slope[j] + offset[j]);
      const C tj = gj * act.slope * (kPixel ? sr[j] : C(1));
      if (kPixel) mr[j] = gj * act.value;
      tr[j] = tj;
      sum_g[j] += gj;
      sum_gm[j] += gj * act.value;
      sum_t[j] += tj;
      sum_td[j] += tj * d;
    }
  }
#pragma omp simd
  for (int64_t j = 0; j < lanes; ++j) {
    k.g[col + j] += sum_g[j];
    k.gm[col + j] += sum_gm[j];
    k.t[col + j] += sum_t[j];
    k.td[col + j] += sum_td[j];
  }
}

template <Activation A, typename C, bool kPixel>
SF_CLONES void backward_columns(Tile<const C> x, Tile<const C> g, Tile<C> t, Tile<const C> scale, Tile<C> gm,
                                int64_t rows, int64_t cols, bool ask, const Columns<C>& k) {
  int64_t col = 0;
  for (; col + kLanes<C> <= cols; col += kLanes<C>) {
    backward_lanes<A, C, kPixel, true>(x, g, t, scale, gm, rows, col, kLanes<C>, ask, k);
  }
  if (col < cols) backward_lanes<A, C, kPixel, false>(x, g, t, scale, gm, rows, col, cols - col, ask, k);
}

template <typename C>
SF_CLONES void finish_columns(Tile<const C> x, Tile<const C> t, Tile<C> dx, int64_t rows, int64_t cols, const C* mean,
                              const C* p, const C* q, const C* k) {
  for (int64_t r = 0; r < rows; ++r) {
    const C* xr = x.data + r * x.stride;
    const C* tr = t.data + r * t.stride;
    C* to = dx.data + r * dx.stride;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) to[j] = p[j] * tr[j] + (q[j] * (xr[j] - mean[j]) + k[j]);
  }
}

// Sums of (samples, channels) over the samples, in order and in double: the same for any number of threads.
template <typename C>
SF_CLONES void sum_samples(const C* from, int64_t samples, int64_t channels, int64_t begin, int64_t size, double* to) {
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) to[j] = 0;
  for (int64_t n = 0; n < samples; ++n) {
    const C* SF_RESTRICT row = from + n * channels + begin;
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) to[j] += row[j];
  }
}

template <typename F>
void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kIdentity: return f(std::integral_constant<Activation, Activation::kIdentity>{});
    case Activation::kMish: return f(std::integral_constant<Activation, Activation::kMish>{});
    case Activation::kSilu: return f(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kRelu: return f(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kElu: return f(std::integral_constant<Activation, Activation::kElu>{});
    case Activation::kTanh: return f(std::integral_constant<Activation, Activation::kTanh>{});
  }
}

}  // namespace
}  // namespace strucfast
