#include "modulate.h"

#include "modulate_loops.h"

namespace strucfast {
namespace {

// A tile: rows x cols elements of x from element `offset` on. Contiguous: each row a channel (or a part of one);
// channels-last: each row a pixel of one sample.
struct Place {
  int64_t offset, stride, rows, cols;
};

// Per-pixel parameters of half types, widened.
template <typename T>
struct Scratch {
  Compute<T> scale[kTileSize], shift[kTileSize];
};

template <typename T, typename Void>
Tile<T> tile_of(Void* data, const Place& at) {
  return {static_cast<T*>(data) + at.offset, at.stride};
}

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
  auto* const f = streams<T>(m.samples * m.channels * m.pixels) ? &affine<T, true> : &affine<T, false>;
  f(tile_of<const T>(m.x, at), tile_of<T>(m.y, at), at.rows, at.cols,
    beside<T>(m.scale, at, m.channels_last, scale, scratch.scale),
    beside<T>(m.shift, at, m.channels_last, shift, scratch.shift));
}

// Calls f(tile) with the place of a per-pixel gradient, in its own type.
template <typename T, typename F>
void with_pixels(const Gradient& gradient, const Place& at, const F& f) {
  if (gradient.wide) {
    f(tile_of<Compute<T>>(gradient.data, at));
  } else {
    f(tile_of<T>(gradient.data, at));
  }
}

template <typename T>
void backward_tile(const Modulate& m, const Place& at, const Compute<T>* scale, Compute<T>* sum_gx, Compute<T>* sum_g,
                   Scratch<T>& scratch) {
  using C = Compute<T>;
  const auto g = tile_of<const T>(m.grad, at), x = tile_of<const T>(m.x, at);
  const bool stream = streams<T>(m.samples * m.channels * m.pixels);
  const bool dscale = m.dscale.data != nullptr, dshift = m.dshift.data != nullptr;
  const bool sums = (dscale && !m.scale.per_pixel) || (dshift && !m.shift_per_pixel);
  const bool together = sums && m.dx != nullptr && !m.scale.per_pixel;
  if (m.dx != nullptr && !together) {
    scaled(g, tile_of<T>(m.dx, at), at.rows, at.cols, beside<T>(m.scale, at, m.channels_last, scale, scratch.scale),
           stream);
  }
  if (sums) {
    const auto dx = together ? tile_of<T>(m.dx, at) : Tile<T>{nullptr, 0};
    gradients(m.channels_last, g, x, dx, at.rows, at.cols, scale, sum_gx, sum_g, stream);
  }
  if (dscale && m.scale.per_pixel) {
    with_pixels<T>(m.dscale, at, [&](auto to) { product_rows(g, x, to, at.rows, at.cols); });
  }
  if (dshift && m.shift_per_pixel) {
    const C one = 1;
    with_pixels<T>(m.dshift, at, [&](auto to) { scaled(g, to, at.rows, at.cols, Beside<C>{&one, 0, false}, false); });
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
      // Of all channels, not of this block's: sums by tiles must not depend on the number of threads.
      const int64_t most = kTileSize / std::min(kTileSize, m.channels);
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
  finish_streams();
}

}  // namespace

int64_t modulate_units(const Modulate& m) {
  return m.samples * (m.channels_last ? m.channel_blocks : m.channels);
}

void modulate_forward(const Modulate& m, int64_t begin, int64_t end) { run(m, false, begin, end); }
void modulate_backward(const Modulate& m, int64_t begin, int64_t end) { run(m, true, begin, end); }

}  // namespace strucfast
