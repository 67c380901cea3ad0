#include "modulate.h"

#include "row_sums.h"

namespace strucfast {
namespace {

// A parameter beside a tile: one value per row (a channel of a contiguous x), or a vector along the row.
template <typename C>
struct Beside {
  const C* data;
  int64_t stride;  // from row to row; 0 for a vector that all rows share
  bool along_row;
};

template <typename C, bool kScaleAlong, bool kShiftAlong>
SF_CLONES void affine(const C* x, int64_t x_stride, C* y, int64_t y_stride, int64_t rows, int64_t cols, const C* scale,
                      int64_t scale_stride, const C* shift, int64_t shift_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x + r * x_stride;
    C* SF_RESTRICT yr = y + r * y_stride;
    const C* SF_RESTRICT s = scale + r * scale_stride;
    const C* SF_RESTRICT b = shift + r * shift_stride;
    const C s0 = s[0], b0 = b[0];
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) yr[j] = (kScaleAlong ? s[j] : s0) * xr[j] + (kShiftAlong ? b[j] : b0);
  }
}

template <typename C>
void affine(Tile<const C> x, Tile<C> y, int64_t rows, int64_t cols, Beside<C> scale, Beside<C> shift) {
  const auto call = [&](auto* f) {
    f(x.data, x.stride, y.data, y.stride, rows, cols, scale.data, scale.stride, shift.data, shift.stride);
  };
  if (scale.along_row && shift.along_row) return call(&affine<C, true, true>);
  if (scale.along_row) return call(&affine<C, true, false>);
  if (shift.along_row) return call(&affine<C, false, true>);
  return call(&affine<C, false, false>);
}

template <typename C, bool kAlong>
SF_CLONES void scaled(const C* x, int64_t x_stride, C* y, int64_t y_stride, int64_t rows, int64_t cols, const C* scale,
                      int64_t scale_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT xr = x + r * x_stride;
    C* SF_RESTRICT yr = y + r * y_stride;
    const C* SF_RESTRICT s = scale + r * scale_stride;
    const C s0 = s[0];
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) yr[j] = (kAlong ? s[j] : s0) * xr[j];
  }
}

template <typename C>
void scaled(Tile<const C> x, Tile<C> y, int64_t rows, int64_t cols, Beside<C> scale) {
  auto* f = scale.along_row ? &scaled<C, true> : &scaled<C, false>;
  f(x.data, x.stride, y.data, y.stride, rows, cols, scale.data, scale.stride);
}

// Rows of up to four vectors, for which adding up lanes is most of the work; kCols is their length where that is known,
// else 0.
template <int64_t kCols, typename C>
SF_INLINE void add_short_row_sums(const C* g, const C* x, int64_t rows, int64_t size, int64_t g_stride,
                                  int64_t x_stride, C* sum_gx, C* sum_g) {
  constexpr int64_t lanes = kLanes<C>;
  const int64_t cols = kCols == 0 ? size : kCols;
  C lines_gx[kBatch * lanes], lines_g[kBatch * lanes], totals_gx[kBatch], totals_g[kBatch];
  std::fill_n(lines_gx, kBatch * lanes, C(0));
  std::fill_n(lines_g, kBatch * lanes, C(0));
  for (int64_t first = 0; first < rows; first += kBatch) {
    const int64_t count = std::min(kBatch, rows - first);
    for (int64_t r = 0; r < count; ++r) {
      const C* SF_RESTRICT gr = g + (first + r) * g_stride;
      const C* SF_RESTRICT xr = x + (first + r) * x_stride;
      C gx[lanes], gs[lanes];
#pragma omp simd
      for (int64_t l = 0; l < lanes; ++l) gx[l] = gs[l] = 0;
      int64_t j = 0;
      for (; j + lanes <= cols; j += lanes) {
#pragma omp simd
        for (int64_t l = 0; l < lanes; ++l) {
          gx[l] += gr[j + l] * xr[j + l];
          gs[l] += gr[j + l];
        }
      }
      if (j < cols) {
#pragma omp simd
        for (int64_t l = 0; l < cols - j; ++l) {
          gx[l] += gr[j + l] * xr[j + l];
          gs[l] += gr[j + l];
        }
      }
      copy_lanes(gx, lines_gx + r * lanes);
      copy_lanes(gs, lines_g + r * lanes);
    }
    sum_lines(lines_gx, totals_gx);
    sum_lines(lines_g, totals_g);
    for (int64_t r = 0; r < count; ++r) {
      sum_gx[first + r] += totals_gx[r];
      sum_g[first + r] += totals_g[r];
    }
  }
}

template <typename C>
SF_CLONES void add_row_sums(const C* g, const C* x, int64_t rows, int64_t cols, int64_t g_stride, int64_t x_stride,
                            C* sum_gx, C* sum_g) {
  constexpr int64_t lanes = kLanes<C>;
  // 4x4 and 8x8 pixels in float: the general loop would cost more around the vectors than in them.
  if (cols == lanes) return add_short_row_sums<lanes>(g, x, rows, cols, g_stride, x_stride, sum_gx, sum_g);
  if (cols == 4 * lanes) return add_short_row_sums<4 * lanes>(g, x, rows, cols, g_stride, x_stride, sum_gx, sum_g);
  if (cols < 4 * lanes) return add_short_row_sums<0>(g, x, rows, cols, g_stride, x_stride, sum_gx, sum_g);
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT gr = g + r * g_stride;
    const C* SF_RESTRICT xr = x + r * x_stride;
    C gx = 0, gs = 0;
#pragma omp simd reduction(+ : gx, gs)
    for (int64_t j = 0; j < cols; ++j) {
      gx += gr[j] * xr[j];
      gs += gr[j];
    }
    sum_gx[r] += gx;
    sum_g[r] += gs;
  }
}

template <typename C>
SF_CLONES void add_column_sums(const C* g, const C* x, int64_t rows, int64_t cols, int64_t g_stride, int64_t x_stride,
                               C* SF_RESTRICT sum_gx, C* SF_RESTRICT sum_g) {
  for (int64_t r = 0; r < rows; ++r) {
    const C* SF_RESTRICT gr = g + r * g_stride;
    const C* SF_RESTRICT xr = x + r * x_stride;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) {
      sum_gx[j] += gr[j] * xr[j];
      sum_g[j] += gr[j];
    }
  }
}

template <typename T>
struct Scratch {
  using C = Compute<T>;
  C x[kTileSize], g[kTileSize], scale[kTileSize], shift[kTileSize], out[kTileSize];
};

// A tile: rows x cols elements of x from element `offset` on. Contiguous: each row a channel (or a part of one);
// channels-last: each row a pixel of one sample.
struct Place {
  int64_t offset, stride, rows, cols;
};

template <typename T>
Beside<Compute<T>> beside(const Parameter& parameter, const Place& at, bool channels_last,
                          const Compute<T>* of_channels, Compute<T>* scratch) {
  if (parameter.per_pixel) {
    const auto tile = read_pixels<T>(parameter, at.offset, at.stride, at.rows, at.cols, scratch);
    return {tile.data, tile.stride, true};
  }
  return {of_channels, channels_last ? 0 : 1, channels_last};
}

template <typename T>
void forward_tile(const Modulate& m, const Place& at, const Compute<T>* scale, const Compute<T>* shift,
                  Scratch<T>& scratch) {
  const auto x = read_tile(static_cast<const T*>(m.x) + at.offset, at.stride, at.rows, at.cols, scratch.x);
  T* const to = static_cast<T*>(m.y) + at.offset;
  const auto y = result_tile(to, at.stride, at.cols, scratch.out);
  affine(x, y, at.rows, at.cols, beside<T>(m.scale, at, m.channels_last, scale, scratch.scale),
         beside<T>(m.shift, at, m.channels_last, shift, scratch.shift));
  write_tile(to, at.stride, at.rows, at.cols, y.data);
}

template <typename T>
void backward_tile(const Modulate& m, const Place& at, const Compute<T>* scale, Compute<T>* sum_gx, Compute<T>* sum_g,
                   Scratch<T>& scratch) {
  using C = Compute<T>;
  const auto g = read_tile(static_cast<const T*>(m.grad) + at.offset, at.stride, at.rows, at.cols, scratch.g);
  if (m.dx != nullptr) {
    T* const to = static_cast<T*>(m.dx) + at.offset;
    const auto dx = result_tile(to, at.stride, at.cols, scratch.out);
    scaled(g, dx, at.rows, at.cols, beside<T>(m.scale, at, m.channels_last, scale, scratch.scale));
    write_tile(to, at.stride, at.rows, at.cols, dx.data);
  }
  const bool sums = (m.dscale.data != nullptr && !m.scale.per_pixel) || (m.dshift.data != nullptr && !m.shift_per_pixel);
  if (!sums && m.dscale.data == nullptr && m.dshift.data == nullptr) return;
  const auto x = read_tile(static_cast<const T*>(m.x) + at.offset, at.stride, at.rows, at.cols, scratch.x);
  if (sums) {
    auto* const add = m.channels_last ? &add_column_sums<C> : &add_row_sums<C>;
    add(g.data, x.data, at.rows, at.cols, g.stride, x.stride, sum_gx, sum_g);
  }
  if (m.dscale.data != nullptr && m.scale.per_pixel) {
    const auto to = result_pixels<T>(m.dscale, at.offset, at.stride, at.cols, scratch.out);
    scaled(g, to, at.rows, at.cols, Beside<C>{x.data, x.stride, true});
    write_pixels<T>(m.dscale, at.offset, at.stride, at.rows, at.cols, to.data);
  }
  if (m.dshift.data != nullptr && m.shift_per_pixel) {
    const C one = 1;
    const auto to = result_pixels<T>(m.dshift, at.offset, at.stride, at.cols, scratch.out);
    scaled(g, to, at.rows, at.cols, Beside<C>{&one, 0, false});
    write_pixels<T>(m.dshift, at.offset, at.stride, at.rows, at.cols, to.data);
  }
}

template <typename T>
void read_scale_and_shift(const Modulate& m, int64_t sample, int64_t channel, int64_t size, Compute<T>* scale,
                          Compute<T>* shift) {
  if (!m.scale.per_pixel) read_channels<T>(m.scale, sample * m.scale.stride + channel, size, 1, scale);
  if (!m.shift.per_pixel) read_channels<T>(m.shift, sample * m.shift.stride + channel, size, 0, shift);
}

template <typename T>
void write_sums(const Modulate& m, int64_t sample, int64_t channel, int64_t size, const Compute<T>* sum_gx,
                const Compute<T>* sum_g) {
  const int64_t at = sample * m.channels + channel;
  if (!m.scale.per_pixel) write_channels<T>(m.dscale, at, size, sum_gx);
  if (!m.shift_per_pixel) write_channels<T>(m.dshift, at, size, sum_g);
}

// Contiguous units: rows (n, c). Rows of one sample go together as far as they fit a tile.
template <typename T>
void contiguous(const Modulate& m, bool backward, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Scratch<T> scratch;
  C scale[kTileRows], shift[kTileRows], sum_gx[kTileRows], sum_g[kTileRows];
  const int64_t cols = std::min(m.pixels, kTileSize);
  const int64_t most = std::min(kTileRows, std::max<int64_t>(1, cols == 0 ? kTileRows : kTileSize / cols));
  for (int64_t row = begin; row < end;) {
    const int64_t sample = row / m.channels, channel = row % m.channels;
    const int64_t rows = std::min({most, end - row, m.channels - channel});
    read_scale_and_shift<T>(m, sample, channel, rows, scale, shift);
    std::fill_n(sum_gx, rows, C(0));
    std::fill_n(sum_g, rows, C(0));
    for (int64_t col = 0; col < m.pixels; col += cols) {
      const Place at{row * m.pixels + col, m.pixels, rows, std::min(cols, m.pixels - col)};
      if (backward) {
        backward_tile<T>(m, at, scale, sum_gx, sum_g, scratch);
      } else {
        forward_tile<T>(m, at, scale, shift, scratch);
      }
    }
    if (backward) write_sums<T>(m, sample, channel, rows, sum_gx, sum_g);
    row += rows;
  }
}

// Channels-last units: blocks of channels of a sample. A block goes through all pixels, so its sums are its own.
template <typename T>
void channels_last(const Modulate& m, bool backward, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Scratch<T> scratch;
  C scale[kTileSize], shift[kTileSize], sum_gx[kTileSize], sum_g[kTileSize];
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / m.channel_blocks, block = unit % m.channel_blocks;
    const int64_t last = m.channels * (block + 1) / m.channel_blocks;
    for (int64_t channel = m.channels * block / m.channel_blocks; channel < last; channel += kTileSize) {
      const int64_t cols = std::min(kTileSize, last - channel);
      const int64_t most = kTileSize / cols;
      read_scale_and_shift<T>(m, sample, channel, cols, scale, shift);
      std::fill_n(sum_gx, cols, C(0));
      std::fill_n(sum_g, cols, C(0));
      for (int64_t pixel = 0; pixel < m.pixels; pixel += most) {
        const int64_t offset = (sample * m.pixels + pixel) * m.channels + channel;
        const Place at{offset, m.channels, std::min(most, m.pixels - pixel), cols};
        if (backward) {
          backward_tile<T>(m, at, scale, sum_gx, sum_g, scratch);
        } else {
          forward_tile<T>(m, at, scale, shift, scratch);
        }
      }
      if (backward) write_sums<T>(m, sample, channel, cols, sum_gx, sum_g);
    }
  }
}

void run(const Modulate& m, bool backward, int64_t begin, int64_t end) {
  with_dtype(m.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (m.channels_last) {
      channels_last<T>(m, backward, begin, end);
    } else {
      contiguous<T>(m, backward, begin, end);
    }
  });
}

}  // namespace

int64_t modulate_units(const Modulate& m) {
  return m.samples * (m.channels_last ? m.channel_blocks : m.channels);
}

void modulate_forward(const Modulate& m, int64_t begin, int64_t end) { run(m, false, begin, end); }
void modulate_backward(const Modulate& m, int64_t begin, int64_t end) { run(m, true, begin, end); }

}  // namespace strucfast
