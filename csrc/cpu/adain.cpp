#include "adain.h"

#include "adain_loops.h"

namespace strucfast {
namespace {

// From this size on the tensors do not stay in L2, and rows are asked for ahead of time.
constexpr int64_t kAheadBytes = int64_t{4} << 20;

template <typename T>
struct Scratch {
  using C = Compute<T>;
  C x[kTileSize], g[kTileSize], scale[kTileSize], shift[kTileSize], out[kTileSize];
};

// rows x cols elements of x from element `offset` on.
struct Place {
  int64_t offset, stride, rows, cols;
};

template <typename T>
Tile<const Compute<T>> read(const void* from, const Place& at, Compute<T>* scratch) {
  return read_tile(static_cast<const T*>(from) + at.offset, at.stride, at.rows, at.cols, scratch);
}

template <typename T>
Pixels<Compute<T>> read_maps(const AdaIN& m, const Place& at, bool shift, Scratch<T>& scratch) {
  Pixels<Compute<T>> pixels;
  if (m.scale.per_pixel) pixels.scale = read_pixels<T>(m.scale, at.offset, at.stride, at.rows, at.cols, scratch.scale);
  if (shift && m.shift.per_pixel) {
    pixels.shift = read_pixels<T>(m.shift, at.offset, at.stride, at.rows, at.cols, scratch.shift);
  }
  return pixels;
}

// How far ahead rows are asked for: the ones behind these, where the tensors are large.
// Half types are widened first, and of the backward's long rows the next ones would push these out of L1.
template <typename T>
int64_t rows_ahead(const AdaIN& m, const Place& at, bool backward) {
  const bool direct = std::is_same<T, Compute<T>>::value;
  const bool large = m.samples * m.channels * m.pixels * static_cast<int64_t>(sizeof(T)) >= kAheadBytes;
  return direct && large && !(backward && m.pixels > kTileSize) ? at.rows * m.pixels : 0;
}

// The same for the results of a channels-last tile; the tiles come backwards.
template <typename T>
int64_t columns_ahead(const Place& at, bool stream) {
  return std::is_same<T, Compute<T>>::value && !stream ? -at.rows * at.stride : 0;
}

template <typename T, typename Slices>
void apply(const AdaIN& m, const Place& at, Tile<const Compute<T>> x, const Slices& s, int64_t from,
           Scratch<T>& scratch) {
  using C = Compute<T>;
  T* const to = static_cast<T*>(m.y) + at.offset;
  const bool stream = streams<T>(m.samples * m.channels * m.pixels);
  const auto y = result_tile(to, at.stride, at.cols, scratch.out, stream);
  const auto pixels = read_maps<T>(m, at, true, scratch);
  const int64_t ahead = m.channels_last ? columns_ahead<T>(at, stream) : rows_ahead<T>(m, at, false);
  const auto call = [&](auto* rows, auto* columns) {
    auto* const f = m.channels_last ? columns : rows;
    f(x, y, pixels, at.rows, at.cols, ahead, s.first + from, s.mean + from, s.slope + from, s.shift + from);
  };
  if (m.scale.per_pixel && m.shift.per_pixel) {
    call(&apply_rows<C, true, true>, &apply_columns<C, true, true>);
  } else if (m.scale.per_pixel) {
    call(&apply_rows<C, true, false>, &apply_columns<C, true, false>);
  } else if (m.shift.per_pixel) {
    call(&apply_rows<C, false, true>, &apply_columns<C, false, true>);
  } else {
    call(&apply_rows<C, false, false>, &apply_columns<C, false, false>);
  }
  write_tile(to, at.stride, at.rows, at.cols, y.data, stream);
}

// Sums of a tile into s.g, s.h, s.hd, and the per-pixel gradients.
template <typename T, typename Slices>
void sums(const AdaIN& m, const Place& at, Tile<const Compute<T>> x, Tile<const Compute<T>> g, Slices& s, int64_t from,
          Scratch<T>& scratch) {
  using C = Compute<T>;
  auto pixels = read_maps<T>(m, at, false, scratch);
  const bool dscale = m.scale.per_pixel && m.dscale.data != nullptr;
  if (dscale) pixels.dscale = result_pixels<T>(m.dscale, at.offset, at.stride, at.cols, scratch.out);
  auto* const f = m.channels_last ? m.scale.per_pixel ? &gradient_columns<C, true> : &gradient_columns<C, false>
                  : m.scale.per_pixel ? &gradient_rows<C, true> : &gradient_rows<C, false>;
  f(x, g, pixels, at.rows, at.cols, s.first + from, s.mean + from, s.rstd + from, s.g + from, s.h + from, s.hd + from);
  if (dscale) write_pixels<T>(m.dscale, at.offset, at.stride, at.rows, at.cols, pixels.dscale.data);
  if (m.shift.per_pixel && m.dshift.data != nullptr) {
    const auto to = result_pixels<T>(m.dshift, at.offset, at.stride, at.cols, scratch.out);
    for (int64_t r = 0; r < at.rows; ++r) std::copy_n(g.data + r * g.stride, at.cols, to.data + r * to.stride);
    write_pixels<T>(m.dshift, at.offset, at.stride, at.rows, at.cols, to.data);
  }
}

template <typename T, typename Slices>
void finish(const AdaIN& m, const Place& at, Tile<const Compute<T>> x, Tile<const Compute<T>> g, const Slices& s,
            int64_t from, Scratch<T>& scratch) {
  using C = Compute<T>;
  T* const to = static_cast<T*>(m.dx) + at.offset;
  const bool stream = streams<T>(m.samples * m.channels * m.pixels);
  const auto dx = result_tile(to, at.stride, at.cols, scratch.out, stream);
  auto* const f = m.channels_last ? m.scale.per_pixel ? &finish_columns<C, true> : &finish_columns<C, false>
                  : m.scale.per_pixel ? &finish_rows<C, true> : &finish_rows<C, false>;
  const int64_t ahead = m.channels_last ? columns_ahead<T>(at, stream) : rows_ahead<T>(m, at, true);
  f(x, g, read_maps<T>(m, at, false, scratch), dx, at.rows, at.cols, ahead, s.first + from, s.mean + from, s.p + from,
    s.mean_h + from, s.q + from);
  write_tile(to, at.stride, at.rows, at.cols, dx.data, stream);
}

// The scale as a factor of the whole slice: 1 where it is per pixel.
template <typename T>
void read_scale(const AdaIN& m, int64_t sample, int64_t channel, int64_t count, Compute<T>* to) {
  if (m.scale.per_pixel) {
    std::fill_n(to, count, Compute<T>(1));
  } else {
    read_channels<T>(m.scale, sample * m.scale.stride + channel, count, 1, to);
  }
}

template <typename T, typename Slices>
void prepare_forward(const AdaIN& m, int64_t sample, int64_t channel, int64_t count, Slices& s) {
  using C = Compute<T>;
  const int64_t at = sample * m.channels + channel;
  std::copy_n(s.mean, count, static_cast<C*>(m.mean) + at);
  std::copy_n(s.rstd, count, static_cast<C*>(m.rstd) + at);
  read_scale<T>(m, sample, channel, count, s.slope);
  for (int64_t i = 0; i < count; ++i) s.slope[i] *= s.rstd[i];
  if (!m.shift.per_pixel) read_channels<T>(m.shift, sample * m.shift.stride + channel, count, 0, s.shift);
}

// `stride`: elements from the first pixel of a slice to that of the next one.
template <typename T, typename Slices>
void prepare_backward(const AdaIN& m, int64_t sample, int64_t channel, int64_t count, int64_t offset, int64_t stride,
                      Slices& s) {
  using C = Compute<T>;
  const int64_t at = sample * m.channels + channel;
  const T* const x = static_cast<const T*>(m.x) + offset;
  for (int64_t i = 0; i < count; ++i) s.first[i] = m.pixels == 0 ? C(0) : load(x[i * stride]);
  std::copy_n(static_cast<const C*>(m.mean) + at, count, s.mean);
  std::copy_n(static_cast<const C*>(m.rstd) + at, count, s.rstd);
  for (C* sum : {s.g, s.h, s.hd}) std::fill_n(sum, count, C(0));
}

// From the sums to the per-channel gradients and the coefficients of dx.
template <typename T, typename Slices>
void finish_sums(const AdaIN& m, int64_t sample, int64_t channel, int64_t count, Slices& s) {
  using C = Compute<T>;
  const int64_t at = sample * m.channels + channel;
  read_scale<T>(m, sample, channel, count, s.slope);
  coefficients<C>(count, m.pixels, s.rstd, s.slope, s.h, s.hd, s.p, s.mean_h, s.q);
  if (!m.scale.per_pixel) write_channels<T>(m.dscale, at, count, s.hd);
  if (!m.shift.per_pixel) write_channels<T>(m.dshift, at, count, s.g);
}

template <typename T>
void long_row_statistics(const T* x, int64_t size, double eps, Compute<T>* scratch, Compute<T>* first,
                         Compute<T>* mean, Compute<T>* rstd) {
  using C = Compute<T>;
  *first = load(x[0]);
  Moments moments;
  for (int64_t i = 0; i < size; i += kTileSize) {
    const int64_t count = std::min(kTileSize, size - i);
    C chunk_mean, squares;
    chunk_moments(read_tile(x + i, count, 1, count, scratch).data, count, *first, &chunk_mean, &squares);
    moments.merge(static_cast<double>(count), chunk_mean, squares);
  }
  *mean = static_cast<C>(moments.mean);
  *rstd = static_cast<C>(1 / std::sqrt(moments.squares / moments.count + eps));
}

// Rows of one sample that are computed together: as many as fit a tile, so that they are read from memory once.
int64_t batch_rows(const AdaIN& m) {
  return std::clamp<int64_t>(kTileSize / std::max<int64_t>(1, m.pixels), 1, kBatch);
}

// Calls f(first row, sample, channel, rows) for batches of the rows [begin, end).
template <typename F>
void for_batches(const AdaIN& m, int64_t begin, int64_t end, const F& f) {
  for (int64_t row = begin; row < end;) {
    const int64_t sample = row / m.channels, channel = row % m.channels;
    const int64_t rows = std::min({batch_rows(m), end - row, m.channels - channel});
    f(row, sample, channel, rows);
    row += rows;
  }
}

// Calls f(place) for the tiles of a row that is too long for one.
template <typename F>
void for_pieces(const AdaIN& m, int64_t row, const F& f) {
  for (int64_t j = 0; j < m.pixels; j += kTileSize) {
    const int64_t cols = std::min(kTileSize, m.pixels - j);
    f(Place{row * m.pixels + j, cols, 1, cols});
  }
}

// Contiguous units: rows (n, c).
template <typename T>
void forward_contiguous(const AdaIN& m, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Scratch<T> scratch;
  Slices<C, kBatch> s;
  const C eps = static_cast<C>(m.eps);
  for_batches(m, begin, end, [&](int64_t row, int64_t sample, int64_t channel, int64_t rows) {
    if (m.pixels > kTileSize) {
      const T* const x = static_cast<const T*>(m.x) + row * m.pixels;
      long_row_statistics(x, m.pixels, m.eps, scratch.x, s.first, s.mean, s.rstd);
      prepare_forward<T>(m, sample, channel, rows, s);
      for_pieces(m, row, [&](const Place& at) { apply<T>(m, at, read<T>(m.x, at, scratch.x), s, 0, scratch); });
      return;
    }
    const Place at{row * m.pixels, m.pixels, rows, m.pixels};
    const auto x = read<T>(m.x, at, scratch.x);
    row_statistics(x, rows, m.pixels, eps, s.first, s.mean, s.rstd);
    prepare_forward<T>(m, sample, channel, rows, s);
    apply<T>(m, at, x, s, 0, scratch);
  });
}

template <typename T>
void backward_contiguous(const AdaIN& m, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Scratch<T> scratch;
  Slices<C, kBatch> s;
  for_batches(m, begin, end, [&](int64_t row, int64_t sample, int64_t channel, int64_t rows) {
    prepare_backward<T>(m, sample, channel, rows, row * m.pixels, m.pixels, s);
    if (m.pixels > kTileSize) {
      double g = 0, h = 0, hd = 0;
      for_pieces(m, row, [&](const Place& at) {
        sums<T>(m, at, read<T>(m.x, at, scratch.x), read<T>(m.grad, at, scratch.g), s, 0, scratch);
        g += s.g[0];
        h += s.h[0];
        hd += s.hd[0];
      });
      s.g[0] = static_cast<C>(g);
      s.h[0] = static_cast<C>(h);
      s.hd[0] = static_cast<C>(hd);
      finish_sums<T>(m, sample, channel, rows, s);
      if (m.dx == nullptr) return;
      for_pieces(m, row, [&](const Place& at) {
        finish<T>(m, at, read<T>(m.x, at, scratch.x), read<T>(m.grad, at, scratch.g), s, 0, scratch);
      });
      return;
    }
    const Place at{row * m.pixels, m.pixels, rows, m.pixels};
    const auto x = read<T>(m.x, at, scratch.x), g = read<T>(m.grad, at, scratch.g);
    sums<T>(m, at, x, g, s, 0, scratch);
    finish_sums<T>(m, sample, channel, rows, s);
    if (m.dx != nullptr) finish<T>(m, at, x, g, s, 0, scratch);
  });
}

// At most this many channels of a channels-last x are computed together.
constexpr int64_t kColumns = 512;

// Channels-last units: blocks of channels of a sample, cut further where they are wide. Calls
// f(sample, channel, channels).
template <typename F>
void for_columns(const AdaIN& m, int64_t begin, int64_t end, const F& f) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / m.channel_blocks, block = unit % m.channel_blocks;
    const int64_t last = m.channels * (block + 1) / m.channel_blocks;
    for (int64_t channel = m.channels * block / m.channel_blocks; channel < last; channel += kColumns) {
      f(sample, channel, std::min(kColumns, last - channel));
    }
  }
}

// Tiles of those channels. Their rows depend on the shape of x only, so that sums come out the same for any number of
// threads. Backwards, the tiles seen last, which the caches still hold, come first. Calls f(place, pixel).
template <typename F>
void for_column_tiles(const AdaIN& m, int64_t sample, int64_t channel, int64_t cols, bool backwards, const F& f) {
  const int64_t rows = std::max<int64_t>(1, kTileSize / std::min(m.channels, kColumns));
  const int64_t tiles = (m.pixels + rows - 1) / rows;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t pixel = (backwards ? tiles - 1 - i : i) * rows;
    const int64_t offset = (sample * m.pixels + pixel) * m.channels + channel;
    f(Place{offset, m.channels, std::min(rows, m.pixels - pixel), cols}, pixel);
  }
}

template <typename C>
SF_CLONES void inverse_deviation(const C* SF_RESTRICT squares, int64_t cols, C count, C eps, C* SF_RESTRICT rstd) {
#pragma omp simd
  for (int64_t j = 0; j < cols; ++j) rstd[j] = C(1) / std::sqrt(squares[j] / count + eps);
}

template <typename T>
void forward_channels_last(const AdaIN& m, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Scratch<T> scratch;
  Slices<C, kColumns> s;
  for_columns(m, begin, end, [&](int64_t sample, int64_t channel, int64_t cols) {
    const T* const x = static_cast<const T*>(m.x) + sample * m.pixels * m.channels + channel;
    C* const squares = s.hd;
    for (int64_t j = 0; j < cols; ++j) {
      s.first[j] = load(x[j]);
      s.mean[j] = squares[j] = 0;
    }
    for_column_tiles(m, sample, channel, cols, false, [&](const Place& at, int64_t pixel) {
      const auto tile = read<T>(m.x, at, scratch.x);
      column_moments(tile.data, tile.stride, at.rows, at.cols, s.first, pixel, s.mean, squares);
    });
    inverse_deviation<C>(squares, cols, static_cast<C>(m.pixels), static_cast<C>(m.eps), s.rstd);
    prepare_forward<T>(m, sample, channel, cols, s);
    for_column_tiles(m, sample, channel, cols, true, [&](const Place& at, int64_t) {
      apply<T>(m, at, read<T>(m.x, at, scratch.x), s, 0, scratch);
    });
  });
}

template <typename T>
void backward_channels_last(const AdaIN& m, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Scratch<T> scratch;
  Slices<C, kColumns> s;
  for_columns(m, begin, end, [&](int64_t sample, int64_t channel, int64_t cols) {
    prepare_backward<T>(m, sample, channel, cols, sample * m.pixels * m.channels + channel, 1, s);
    for_column_tiles(m, sample, channel, cols, false, [&](const Place& at, int64_t) {
      sums<T>(m, at, read<T>(m.x, at, scratch.x), read<T>(m.grad, at, scratch.g), s, 0, scratch);
    });
    finish_sums<T>(m, sample, channel, cols, s);
    if (m.dx == nullptr) return;
    for_column_tiles(m, sample, channel, cols, true, [&](const Place& at, int64_t) {
      finish<T>(m, at, read<T>(m.x, at, scratch.x), read<T>(m.grad, at, scratch.g), s, 0, scratch);
    });
  });
}

void run(const AdaIN& m, bool backward, int64_t begin, int64_t end) {
  with_dtype(m.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto* const f = m.channels_last ? backward ? &backward_channels_last<T> : &forward_channels_last<T>
                    : backward ? &backward_contiguous<T> : &forward_contiguous<T>;
    f(m, begin, end);
  });
  finish_streams();
}

}  // namespace

int64_t adain_units(const AdaIN& m) { return m.samples * (m.channels_last ? m.channel_blocks : m.channels); }

void adain_forward(const AdaIN& m, int64_t begin, int64_t end) { run(m, false, begin, end); }
void adain_backward(const AdaIN& m, int64_t begin, int64_t end) { run(m, true, begin, end); }

}  // namespace strucfast
