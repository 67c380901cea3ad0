#pragma once
#include "../common/activation.h"
#include "tile.h"

// The vector loops of group_norm_modulate. In all of them d = x - mean, u = slope * d + offset (the norm and its affine),
// m = act(u), y = scale * m + shift, and t = grad * act'(u), which the scale multiplies only once it is summed
// (per-pixel scales: at once). "Rows" loops: a row is a channel. "Columns" loops: a row is a pixel, a column a channel.
namespace strucfast {
namespace {

template <typename C>
struct RowCoefficients {
  C slope, offset, scale, shift;
};

template <typename C>
struct RowSums {
  C g, gm, t, td;
};

// Arrays over the channels of a block.
template <typename C>
struct Columns {
  C *mean, *slope, *offset, *scale, *shift, *weight;
  C *g, *gm, *t, *td;
  static constexpr int64_t kArrays = 10;
};

// Mean (as first element + *shifted_mean) and sum of squared deviations of a chunk that stays in L1: two passes, both
// relative to the first element, so that a large common offset costs no digits.
template <typename C>
SF_CLONES void chunk_moments(const C* SF_RESTRICT x, int64_t size, C* shifted_mean, C* squares) {
  const C first = x[0];
  C sum = 0, sum_squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += x[i] - first;
  const C mean = sum / static_cast<C>(size);
#pragma omp simd reduction(+ : sum_squares)
  for (int64_t i = 0; i < size; ++i) {
    const C d = (x[i] - first) - mean;
    sum_squares += d * d;
  }
  *shifted_mean = mean;
  *squares = sum_squares;
}

// The same per column, then merged into the running moments of `seen` earlier rows (Chan, Golub, LeVeque 1979).
template <typename C>
SF_CLONES void column_moments(const C* x, int64_t stride, int64_t rows, int64_t cols, const C* SF_RESTRICT first,
                              int64_t seen, C* SF_RESTRICT mean, C* SF_RESTRICT squares, C* SF_RESTRICT chunk_mean,
                              C* SF_RESTRICT chunk_squares) {
  for (int64_t j = 0; j < cols; ++j) chunk_mean[j] = chunk_squares[j] = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x + r * stride;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) chunk_mean[j] += xr[j] - first[j];
  }
  const C each = C(1) / static_cast<C>(rows);
  for (int64_t j = 0; j < cols; ++j) chunk_mean[j] *= each;
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x + r * stride;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) {
      const C d = (xr[j] - first[j]) - chunk_mean[j];
      chunk_squares[j] += d * d;
    }
  }
  const C part = static_cast<C>(rows) / static_cast<C>(seen + rows);
  const C cross = part * static_cast<C>(seen);
#pragma omp simd
  for (int64_t j = 0; j < cols; ++j) {
    const C delta = chunk_mean[j] - mean[j];
    mean[j] += delta * part;
    squares[j] += chunk_squares[j] + delta * delta * cross;
  }
}

template <Activation A, typename C, bool kPixel>
SF_CLONES void forward_rows(Tile<const C> x, Tile<C> y, Tile<const C> scale, Tile<const C> shift, int64_t rows,
                            int64_t cols, C mean, const RowCoefficients<C>* coefficients) {
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x.data + r * x.stride;
    C* SF_RESTRICT yr = y.data + r * y.stride;
    const C* SF_RESTRICT sr = kPixel ? scale.data + r * scale.stride : nullptr;
    const C* SF_RESTRICT br = kPixel ? shift.data + r * shift.stride : nullptr;
    const RowCoefficients<C> k = coefficients[r];
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) {
      const C m = activate<A>((xr[j] - mean) * k.slope + k.offset);
      yr[j] = m * (kPixel ? sr[j] : k.scale) + (kPixel ? br[j] : k.shift);
    }
  }
}

template <Activation A, typename C, bool kPixel>
SF_CLONES void backward_rows(Tile<const C> x, Tile<const C> g, Tile<C> t, Tile<const C> scale, Tile<C> gm, int64_t rows,
                             int64_t cols, C mean, const RowCoefficients<C>* coefficients, RowSums<C>* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x.data + r * x.stride;
    const C* SF_RESTRICT gr = g.data + r * g.stride;
    C* SF_RESTRICT tr = t.data + r * t.stride;
    const C* SF_RESTRICT sr = kPixel ? scale.data + r * scale.stride : nullptr;
    C* SF_RESTRICT mr = kPixel ? gm.data + r * gm.stride : nullptr;
    const C slope = coefficients[r].slope, offset = coefficients[r].offset;
    C sum_g = 0, sum_gm = 0, sum_t = 0, sum_td = 0;
#pragma omp simd reduction(+ : sum_g, sum_gm, sum_t, sum_td)
    for (int64_t j = 0; j < cols; ++j) {
      const C d = xr[j] - mean;
      const C gj = gr[j];
      const ValueAndSlope<C> act = activate_with_slope<A>(d * slope + offset);
      const C tj = gj * act.slope * (kPixel ? sr[j] : C(1));
      if (kPixel) mr[j] = gj * act.value;
      tr[j] = tj;
      sum_g += gj;
      sum_gm += gj * act.value;
      sum_t += tj;
      sum_td += tj * d;
    }
    sums[r].g += sum_g;
    sums[r].gm += sum_gm;
    sums[r].t += sum_t;
    sums[r].td += sum_td;
  }
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
template <typename C>
constexpr int kLanes = 64 / sizeof(C);

template <Activation A, typename C, bool kPixel, bool kFull>
SF_INLINE void forward_lanes(Tile<const C> x, Tile<C> y, Tile<const C> scale, Tile<const C> shift, int64_t rows,
                             int64_t col, int64_t width, const Columns<C>& k) {
  const int64_t lanes = kFull ? kLanes<C> : width;
  C mean[kLanes<C>], slope[kLanes<C>], offset[kLanes<C>], s[kLanes<C>], b[kLanes<C>];
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
#pragma omp simd
    for (int64_t j = 0; j < lanes; ++j) yr[j] = activate<A>((xr[j] - mean[j]) * slope[j] + offset[j]) * sr[j] + br[j];
  }
}

template <Activation A, typename C, bool kPixel>
SF_CLONES void forward_columns(Tile<const C> x, Tile<C> y, Tile<const C> scale, Tile<const C> shift, int64_t rows,
                               int64_t cols, const Columns<C>& k) {
  int64_t col = 0;
  for (; col + kLanes<C> <= cols; col += kLanes<C>) {
    forward_lanes<A, C, kPixel, true>(x, y, scale, shift, rows, col, kLanes<C>, k);
  }
  if (col < cols) forward_lanes<A, C, kPixel, false>(x, y, scale, shift, rows, col, cols - col, k);
}

template <Activation A, typename C, bool kPixel, bool kFull>
SF_INLINE void backward_lanes(Tile<const C> x, Tile<const C> g, Tile<C> t, Tile<const C> scale, Tile<C> gm, int64_t rows,
                              int64_t col, int64_t width, const Columns<C>& k) {
  const int64_t lanes = kFull ? kLanes<C> : width;
  C mean[kLanes<C>], slope[kLanes<C>], offset[kLanes<C>];
  C sum_g[kLanes<C>], sum_gm[kLanes<C>], sum_t[kLanes<C>], sum_td[kLanes<C>];
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
#pragma omp simd
    for (int64_t j = 0; j < lanes; ++j) {
      const C d = xr[j] - mean[j];
      const C gj = gr[j];
      const ValueAndSlope<C> act = activate_with_slope<A>(d * slope[j] + offset[j]);
      const C tj = gj * act.slope * (kPixel ? sr[j] : C(1));
      if (kPixel) mr[j] = gj * act.value;
      tr[j] = tj;
      sum_g[j] += gj;
      sum_gm[j] += gj * act.value;
      sum_t[j] += tj;
      sum_td[j] += tj * d;
    }
  }
  for (int64_t j = 0; j < lanes; ++j) {
    k.g[col + j] += sum_g[j];
    k.gm[col + j] += sum_gm[j];
    k.t[col + j] += sum_t[j];
    k.td[col + j] += sum_td[j];
  }
}

template <Activation A, typename C, bool kPixel>
SF_CLONES void backward_columns(Tile<const C> x, Tile<const C> g, Tile<C> t, Tile<const C> scale, Tile<C> gm,
                                int64_t rows, int64_t cols, const Columns<C>& k) {
  int64_t col = 0;
  for (; col + kLanes<C> <= cols; col += kLanes<C>) {
    backward_lanes<A, C, kPixel, true>(x, g, t, scale, gm, rows, col, kLanes<C>, k);
  }
  if (col < cols) backward_lanes<A, C, kPixel, false>(x, g, t, scale, gm, rows, col, cols - col, k);
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
