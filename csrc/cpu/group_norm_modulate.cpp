#include "group_norm_modulate.h"

#include <cmath>

#include "group_norm_modulate_loops.h"

namespace strucfast {
namespace {

// Beyond this |mean| / deviation the rounding of the saved mean shows, and the backward measures the rest of it anew.
constexpr double kLargeOffset = 64.0;

// What is needed of one group: d = x - mean has its remaining mean `residual` where mean was rounded.
template <typename C>
struct Group {
  C mean, rstd;
  double residual;
};

template <typename C>
Group<C> finish_group(const Moments& moments, double eps) {
  const C mean = static_cast<C>(moments.mean);
  const double variance = moments.count == 0 ? 0 : moments.squares / moments.count;
  return {mean, static_cast<C>(1 / std::sqrt(variance + eps)), moments.mean - static_cast<double>(mean)};
}

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
Tile<const Compute<T>> read_x(const void* x, const Place& at, Compute<T>* scratch) {
  return read_tile(static_cast<const T*>(x) + at.offset, at.stride, at.rows, at.cols, scratch);
}

// A per-pixel parameter's tile, or a per-channel one spread over the tile.
template <typename T, typename F>
Tile<const Compute<T>> spread(const Parameter& parameter, const Place& at, Compute<T>* scratch, const F& of) {
  if (parameter.per_pixel) return read_pixels<T>(parameter, at.offset, at.stride, at.rows, at.cols, scratch);
  for (int64_t r = 0; r < at.rows; ++r) {
    for (int64_t j = 0; j < at.cols; ++j) scratch[r * at.cols + j] = of(r, j);
  }
  return {scratch, at.cols};
}

// Reads what the loop needs, calls loop(activation, pixel, x, y, scale, shift), and stores y.
template <typename T, typename Scale, typename Shift, typename Loop>
void forward_tile(const GroupNormModulate& m, const Place& at, Scratch<T>& scratch, const Scale& scale_of,
                  const Shift& shift_of, const Loop& loop) {
  using C = Compute<T>;
  const auto x = read_x<T>(m.x, at, scratch.x);
  T* const to = static_cast<T*>(m.y) + at.offset;
  const auto y = result_tile(to, at.stride, at.cols, scratch.out);
  with_activation(m.activation, [&](auto activation) {
    if (m.scale.per_pixel || m.shift.per_pixel) {
      loop(activation, std::true_type{}, x, y, spread<T>(m.scale, at, scratch.scale, scale_of),
           spread<T>(m.shift, at, scratch.shift, shift_of));
    } else {
      loop(activation, std::false_type{}, x, y, Tile<const C>{}, Tile<const C>{});
    }
  });
  write_tile(to, at.stride, at.rows, at.cols, y.data);
}

// The first half of the backward: leaves t in `t` and calls loop(activation, pixel, x, g, t, scale, gm).
template <typename T, typename Loop>
void backward_tile(const GroupNormModulate& m, const Place& at, Tile<Compute<T>> t, Scratch<T>& scratch,
                   const Loop& loop) {
  using C = Compute<T>;
  const auto x = read_x<T>(m.x, at, scratch.x);
  const auto g = read_x<T>(m.grad, at, scratch.g);
  const bool dscale = m.dscale.data != nullptr && m.scale.per_pixel;
  with_activation(m.activation, [&](auto activation) {
    if (m.scale.per_pixel) {
      const auto scale = read_pixels<T>(m.scale, at.offset, at.stride, at.rows, at.cols, scratch.scale);
      const auto gm = dscale ? result_pixels<T>(m.dscale, at.offset, at.stride, at.cols, scratch.shift)
                             : Tile<C>{scratch.shift, at.cols};
      loop(activation, std::true_type{}, x, g, t, scale, gm);
      if (dscale) write_pixels<T>(m.dscale, at.offset, at.stride, at.rows, at.cols, gm.data);
    } else {
      loop(activation, std::false_type{}, x, g, t, Tile<const C>{}, Tile<C>{});
    }
  });
  if (m.dshift.data != nullptr && m.shift.per_pixel) {
    const auto to = result_pixels<T>(m.dshift, at.offset, at.stride, at.cols, scratch.shift);
    for (int64_t r = 0; r < at.rows; ++r) std::copy_n(g.data + r * g.stride, at.cols, to.data + r * to.stride);
    write_pixels<T>(m.dshift, at.offset, at.stride, at.rows, at.cols, to.data);
  }
}

// Tiles of half types and of per-pixel parameters must fit the scratch memory; else a tile may be many short rows.
template <typename T>
bool many_rows(const GroupNormModulate& m, bool backward) {
  const bool pixel = m.scale.per_pixel || m.shift.per_pixel;
  return std::is_same<T, Compute<T>>::value && !pixel && (!backward || m.dx != nullptr);
}

// Calls f(first channel, place) for the tiles of `channels` rows of m.pixels that begin at element `offset`.
template <typename F>
void for_row_tiles(const GroupNormModulate& m, int64_t offset, int64_t channels, bool many, const F& f) {
  const int64_t cols = std::min(m.pixels, kTileSize);
  const int64_t fitting = std::clamp<int64_t>(kTileSize / std::max<int64_t>(1, cols), 1, kTileRows);
  const int64_t rows = many && cols < kTileSize ? kTileRows : fitting;
  for (int64_t c = 0; c < channels; c += rows) {
    for (int64_t j = 0; j < m.pixels; j += cols) {
      f(c, Place{offset + c * m.pixels + j, m.pixels, std::min(rows, channels - c), std::min(cols, m.pixels - j)});
    }
  }
}

template <typename T>
Moments row_moments(const T* x, int64_t size, Compute<T>* scratch) {
  Moments moments;
  for (int64_t i = 0; i < size; i += kTileSize) {
    const int64_t count = std::min(kTileSize, size - i);
    const auto tile = read_tile(x + i, count, 1, count, scratch);
    Compute<T> mean, squares;
    chunk_moments(tile.data, count, tile.data[0], &mean, &squares);
    moments.merge(static_cast<double>(count), static_cast<double>(tile.data[0]) + mean, squares);
  }
  return moments;
}

template <typename C>
struct RowBlock {
  RowCoefficients<C> of[kTileRows];
  C weight[kTileRows];
};

template <typename T>
void read_rows(const GroupNormModulate& m, int64_t sample, int64_t channel, int64_t rows, const Group<Compute<T>>& group,
               RowBlock<Compute<T>>* block) {
  using C = Compute<T>;
  C bias[kTileRows], scale[kTileRows], shift[kTileRows];
  const Parameter none;
  read_channels<T>(m.weight, channel, rows, 1, block->weight);
  read_channels<T>(m.bias, channel, rows, 0, bias);
  read_channels<T>(m.scale.per_pixel ? none : m.scale, sample * m.scale.stride + channel, rows, 1, scale);
  read_channels<T>(m.shift.per_pixel ? none : m.shift, sample * m.shift.stride + channel, rows, 0, shift);
  for (int64_t r = 0; r < rows; ++r) {
    const C slope = block->weight[r] * group.rstd;
    const C offset = static_cast<C>(bias[r] - group.residual * slope);
    block->of[r] = {slope, offset, scale[r] + poison(slope, offset), shift[r]};
  }
}

// Contiguous units: (n, g). A group is one run of memory.
template <typename T>
void forward_contiguous(const GroupNormModulate& m, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Scratch<T> scratch;
  RowBlock<C> block;
  const int64_t channels = m.channels / m.groups, size = channels * m.pixels;
  // While a group is computed the next one comes from memory: 0.98 -> 0.79 ns an element at 64x64.
  const int64_t ahead = std::is_same<T, C>::value ? size : 0;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / m.groups, first = unit % m.groups * channels;
    const auto group = finish_group<C>(row_moments(static_cast<const T*>(m.x) + unit * size, size, scratch.x), m.eps);
    static_cast<C*>(m.mean)[unit] = group.mean;
    static_cast<C*>(m.rstd)[unit] = group.rstd;
    int64_t loaded = -1;
    for_row_tiles(m, unit * size, channels, many_rows<T>(m, false), [&](int64_t c, const Place& at) {
      if (loaded != c) read_rows<T>(m, sample, first + c, at.rows, group, &block);
      loaded = c;
      const auto scale_of = [&](int64_t r, int64_t) { return block.of[r].scale; };
      const auto shift_of = [&](int64_t r, int64_t) { return block.of[r].shift; };
      forward_tile(m, at, scratch, scale_of, shift_of,
                   [&](auto activation, auto pixel, auto x, auto y, auto scale, auto shift) {
                     forward_rows<activation(), C, pixel()>(x, y, scale, shift, at.rows, at.cols, ahead, group.mean, block.of);
                   });
    });
  }
}

template <typename T>
Group<Compute<T>> saved_group(const GroupNormModulate& m, int64_t index) {
  using C = Compute<T>;
  return {static_cast<const C*>(m.mean)[index], static_cast<const C*>(m.rstd)[index], 0};
}

template <typename C>
bool large_offset(const Group<C>& group) {
  return std::abs(static_cast<double>(group.mean)) * group.rstd > kLargeOffset;
}

// Where t is kept between the halves of the backward: dx itself, unless that is narrower, or was not asked for.
template <typename T>
Tile<Compute<T>> place_of_t(const GroupNormModulate& m, const Place& at, Tile<Compute<T>> workspace,
                            Scratch<T>& scratch) {
  if (m.dx == nullptr) return {scratch.out, at.cols};
  if constexpr (std::is_same<T, Compute<T>>::value) {
    return {static_cast<T*>(m.dx) + at.offset, at.stride};
  } else {
    return workspace;
  }
}

template <typename T>
void write_row_sums(const GroupNormModulate& m, int64_t at, int64_t rows, const RowBlock<Compute<T>>& block,
                    const RowSums<Compute<T>>* sums, const Group<Compute<T>>& group) {
  using C = Compute<T>;
  C g[kTileRows], gm[kTileRows];
  for (int64_t r = 0; r < rows; ++r) {
    const auto [sum_g, sum_gm, sum_t, sum_td] = sums[r].of;
    const C scale = block.of[r].scale;
    static_cast<C*>(m.dbias_parts)[at + r] = scale * sum_t;
    static_cast<C*>(m.dweight_parts)[at + r] = scale * group.rstd * static_cast<C>(sum_td - group.residual * sum_t);
    g[r] = sum_g;
    gm[r] = sum_gm + poison(block.of[r].slope, block.of[r].offset);
  }
  if (!m.scale.per_pixel) write_channels<T>(m.dscale, at, rows, gm);
  if (!m.shift.per_pixel) write_channels<T>(m.dshift, at, rows, g);
}

// dx = rstd (h - mean(h) - xhat mean(h xhat)) with h = weight scale t, as p t + q d + k.
struct Finish {
  double sum_h = 0, sum_hd = 0;

  template <typename C>
  void coefficients(const Group<C>& group, int64_t size, C* q, C* k) const {
    const double rstd = group.rstd, each = size == 0 ? 0 : 1.0 / static_cast<double>(size);
    const double q_wide = -rstd * rstd * rstd * (sum_hd - group.residual * sum_h) * each;
    *q = static_cast<C>(q_wide);
    *k = static_cast<C>(-rstd * sum_h * each - q_wide * group.residual);
  }
};

template <typename T>
void backward_contiguous(const GroupNormModulate& m, int64_t begin, int64_t end, Compute<T>* workspace) {
  using C = Compute<T>;
  Scratch<T> scratch;
  RowBlock<C> block;
  RowSums<C> sums[kTileRows];
  const int64_t channels = m.channels / m.groups, size = channels * m.pixels;
  const bool many = many_rows<T>(m, true);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t sample = unit / m.groups, first = unit % m.groups * channels;
    Group<C> group = saved_group<T>(m, unit);
    if (large_offset(group)) {
      const Moments moments = row_moments(static_cast<const T*>(m.x) + unit * size, size, scratch.x);
      group.residual = moments.mean - static_cast<double>(group.mean);
    }
    Finish finish;
    for (int64_t c = 0; c < channels; c += kTileRows) {
      const int64_t rows = std::min(kTileRows, channels - c);
      read_rows<T>(m, sample, first + c, rows, group, &block);
      std::fill_n(sums, rows, RowSums<C>{});
      for_row_tiles(m, unit * size + c * m.pixels, rows, many, [&](int64_t row, const Place& at) {
        const Tile<C> kept{workspace + (at.offset - unit * size), m.pixels};
        backward_tile(m, at, place_of_t<T>(m, at, kept, scratch), scratch,
                      [&](auto activation, auto pixel, auto x, auto g, auto t, auto scale, auto gm) {
                        backward_rows<activation(), C, pixel()>(x, g, t, scale, gm, at.rows, at.cols, group.mean,
                                                                block.of + row, sums + row);
                      });
      });
      write_row_sums<T>(m, sample * m.channels + first + c, rows, block, sums, group);
      for (int64_t r = 0; r < rows; ++r) {
        const double scaled = static_cast<double>(block.weight[r]) * block.of[r].scale;
        finish.sum_h += scaled * sums[r].of[2];
        finish.sum_hd += scaled * sums[r].of[3];
      }
    }
    if (m.dx == nullptr) continue;
    C q, k, p[kTileRows];
    finish.coefficients(group, size, &q, &k);
    for_row_tiles(m, unit * size, channels, many, [&](int64_t c, const Place& at) {
      if (channels > kTileRows) read_rows<T>(m, sample, first + c, at.rows, group, &block);
      const RowCoefficients<C>* of = channels > kTileRows ? block.of : block.of + c;
      for (int64_t r = 0; r < at.rows; ++r) p[r] = of[r].slope * of[r].scale;
      const auto x = read_x<T>(m.x, at, scratch.x);
      const auto t = place_of_t<T>(m, at, {workspace + (at.offset - unit * size), m.pixels}, scratch);
      T* const to = static_cast<T*>(m.dx) + at.offset;
      const auto dx = result_tile(to, at.stride, at.cols, scratch.out);
      finish_rows(x, Tile<const C>{t.data, t.stride}, dx, at.rows, at.cols, group.mean, p, q, k);
      write_tile(to, at.stride, at.rows, at.cols, dx.data);
    });
  }
}

// A channels-last unit: the channels [channel, channel + cols) of whole groups [group, group + groups) of a sample.
struct ColumnBlock {
  int64_t sample, group, groups, channel, cols;
};

ColumnBlock column_block(const GroupNormModulate& m, int64_t unit) {
  const int64_t sample = unit / m.channel_blocks, block = unit % m.channel_blocks;
  const int64_t group = m.groups * block / m.channel_blocks, last = m.groups * (block + 1) / m.channel_blocks;
  const int64_t each = m.channels / m.groups;
  return {sample, group, last - group, group * each, (last - group) * each};
}

int64_t most_columns(const GroupNormModulate& m) {
  return (m.groups + m.channel_blocks - 1) / m.channel_blocks * (m.channels / m.groups);
}

template <typename C>
Columns<C> columns_at(C* workspace, int64_t cols) {
  Columns<C> k;
  C** const arrays[] = {&k.mean, &k.slope, &k.offset, &k.scale, &k.shift, &k.weight, &k.g, &k.gm, &k.t, &k.td};
  for (C** array : arrays) {
    *array = workspace;
    workspace += cols;
  }
  return k;
}

// Tiles of a block, wide ones cut into columns. Their rows depend on the shape of x only, never on the blocks, so that
// sums come out the same for any number of threads. Calls f(first column, place).
template <typename F>
void for_column_tiles(const GroupNormModulate& m, const ColumnBlock& block, const F& f, bool backwards = false) {
  const int64_t rows = std::max<int64_t>(1, kTileSize / std::max<int64_t>(1, m.channels));
  const int64_t tiles = (m.pixels + rows - 1) / rows;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t pixel = (backwards ? tiles - 1 - i : i) * rows;
    for (int64_t col = 0; col < block.cols; col += kTileSize) {
      const int64_t offset = (block.sample * m.pixels + pixel) * m.channels + block.channel + col;
      f(col, Place{offset, m.channels, std::min(rows, m.pixels - pixel), std::min(kTileSize, block.cols - col)});
    }
  }
}

template <typename C>
Columns<C> shifted(const Columns<C>& k, int64_t col) {
  return {k.mean + col,   k.slope + col, k.offset + col, k.scale + col, k.shift + col,
          k.weight + col, k.g + col,     k.gm + col,     k.t + col,     k.td + col};
}

// Moments of every group of the block, handed to f(group, moments). Uses k's arrays as scratch.
template <typename T, typename F>
void group_moments(const GroupNormModulate& m, const ColumnBlock& block, const Columns<Compute<T>>& k,
                   Scratch<T>& scratch, const F& f) {
  using C = Compute<T>;
  C *const first = k.slope, *const mean = k.offset, *const squares = k.scale;
  const T* const x = static_cast<const T*>(m.x) + block.sample * m.pixels * m.channels + block.channel;
  for (int64_t j = 0; j < block.cols; ++j) {
    first[j] = m.pixels == 0 ? C(0) : load(x[j]);
    mean[j] = squares[j] = 0;
  }
  int64_t seen = 0, last_rows = 0;
  for_column_tiles(m, block, [&](int64_t col, const Place& at) {
    if (col == 0) seen += last_rows;
    last_rows = at.rows;
    const auto tile = read_x<T>(m.x, at, scratch.x);
    column_moments(tile.data, tile.stride, at.rows, at.cols, first + col, seen, mean + col, squares + col);
  });
  const int64_t each = m.channels / m.groups;
  for (int64_t g = 0; g < block.groups; ++g) {
    Moments moments;
    for (int64_t j = g * each; j < (g + 1) * each; ++j) {
      moments.merge(static_cast<double>(m.pixels), static_cast<double>(first[j]) + mean[j], squares[j]);
    }
    f(g, moments);
  }
}

template <typename T>
void read_columns(const GroupNormModulate& m, const ColumnBlock& block, const Group<Compute<T>>* groups,
                  const Columns<Compute<T>>& k) {
  using C = Compute<T>;
  const Parameter none;
  read_channels<T>(m.weight, block.channel, block.cols, 1, k.weight);
  read_channels<T>(m.bias, block.channel, block.cols, 0, k.offset);
  read_channels<T>(m.scale.per_pixel ? none : m.scale, block.sample * m.scale.stride + block.channel, block.cols, 1,
                   k.scale);
  read_channels<T>(m.shift.per_pixel ? none : m.shift, block.sample * m.shift.stride + block.channel, block.cols, 0,
                   k.shift);
  const int64_t each = m.channels / m.groups;
  for (int64_t g = 0; g < block.groups; ++g) {
    const Group<C> group = groups[g];
    for (int64_t j = g * each; j < (g + 1) * each; ++j) {
      k.mean[j] = group.mean;
      k.slope[j] = k.weight[j] * group.rstd;
      k.offset[j] = static_cast<C>(k.offset[j] - group.residual * k.slope[j]);
      k.scale[j] += poison(k.slope[j], k.offset[j]);
    }
  }
}

template <typename T>
void forward_channels_last(const GroupNormModulate& m, int64_t begin, int64_t end, Compute<T>* workspace,
                           Group<Compute<T>>* groups) {
  using C = Compute<T>;
  Scratch<T> scratch;
  const Columns<C> k = columns_at(workspace, most_columns(m));
  constexpr bool direct = std::is_same<T, C>::value;
  for (int64_t unit = begin; unit < end; ++unit) {
    const ColumnBlock block = column_block(m, unit);
    group_moments<T>(m, block, k, scratch, [&](int64_t g, const Moments& moments) {
      groups[g] = finish_group<C>(moments, m.eps);
      static_cast<C*>(m.mean)[block.sample * m.groups + block.group + g] = groups[g].mean;
      static_cast<C*>(m.rstd)[block.sample * m.groups + block.group + g] = groups[g].rstd;
    });
    read_columns<T>(m, block, groups, k);
    for_column_tiles(m, block, [&](int64_t col, const Place& at) {
      const Columns<C> here = shifted(k, col);
      const auto scale_of = [&](int64_t, int64_t j) { return here.scale[j]; };
      const auto shift_of = [&](int64_t, int64_t j) { return here.shift[j]; };
      forward_tile(m, at, scratch, scale_of, shift_of,
                   [&](auto activation, auto pixel, auto x, auto y, auto scale, auto shift) {
                     forward_columns<activation(), C, pixel()>(x, y, scale, shift, at.rows, at.cols, direct, here);
                   });
    });
  }
}

template <typename T>
void write_column_sums(const GroupNormModulate& m, const ColumnBlock& block, const Group<Compute<T>>* groups,
                       const Columns<Compute<T>>& k) {
  using C = Compute<T>;
  const int64_t at = block.sample * m.channels + block.channel, each = m.channels / m.groups;
  C *const dbias = static_cast<C*>(m.dbias_parts) + at, *const dweight = static_cast<C*>(m.dweight_parts) + at;
  for (int64_t g = 0; g < block.groups; ++g) {
    const Group<C> group = groups[g];
    for (int64_t j = g * each; j < (g + 1) * each; ++j) {
      dbias[j] = k.scale[j] * k.t[j];
      dweight[j] = k.scale[j] * group.rstd * static_cast<C>(k.td[j] - group.residual * k.t[j]);
      k.gm[j] += poison(k.slope[j], k.offset[j]);
    }
  }
  if (!m.scale.per_pixel) write_channels<T>(m.dscale, at, block.cols, k.gm);
  if (!m.shift.per_pixel) write_channels<T>(m.dshift, at, block.cols, k.g);
}

template <typename T>
void backward_channels_last(const GroupNormModulate& m, int64_t begin, int64_t end, Compute<T>* workspace,
                            Group<Compute<T>>* groups) {
  using C = Compute<T>;
  Scratch<T> scratch;
  const int64_t most = most_columns(m), each = m.channels / m.groups;
  const Columns<C> k = columns_at(workspace, most);
  C* const kept = workspace + Columns<C>::kArrays * most;
  constexpr bool direct = std::is_same<T, C>::value;
  for (int64_t unit = begin; unit < end; ++unit) {
    const ColumnBlock block = column_block(m, unit);
    bool large = false;
    for (int64_t g = 0; g < block.groups; ++g) {
      groups[g] = saved_group<T>(m, block.sample * m.groups + block.group + g);
      large = large || large_offset(groups[g]);
    }
    if (large) {
      group_moments<T>(m, block, k, scratch, [&](int64_t g, const Moments& moments) {
        if (large_offset(groups[g])) groups[g].residual = moments.mean - static_cast<double>(groups[g].mean);
      });
    }
    read_columns<T>(m, block, groups, k);
    for (C* sum : {k.g, k.gm, k.t, k.td}) std::fill_n(sum, block.cols, C(0));
    const auto kept_at = [&](int64_t col, const Place& at) {
      const int64_t pixel = at.offset / m.channels - block.sample * m.pixels;
      return place_of_t<T>(m, at, {kept + pixel * block.cols + col, block.cols}, scratch);
    };
    for_column_tiles(m, block, [&](int64_t col, const Place& at) {
      const Columns<C> here = shifted(k, col);
      backward_tile(m, at, kept_at(col, at), scratch,
                    [&](auto activation, auto pixel, auto x, auto g, auto t, auto scale, auto gm) {
                      backward_columns<activation(), C, pixel()>(x, g, t, scale, gm, at.rows, at.cols, direct, here);
                    });
    });
    write_column_sums<T>(m, block, groups, k);
    if (m.dx == nullptr) continue;
    C *const p = k.slope, *const q = k.offset, *const rest = k.shift;
    for (int64_t g = 0; g < block.groups; ++g) {
      Finish finish;
      C group_q, group_k;
      for (int64_t j = g * each; j < (g + 1) * each; ++j) {
        const double scaled = static_cast<double>(k.weight[j]) * k.scale[j];
        finish.sum_h += scaled * k.t[j];
        finish.sum_hd += scaled * k.td[j];
      }
      finish.coefficients(groups[g], each * m.pixels, &group_q, &group_k);
      for (int64_t j = g * each; j < (g + 1) * each; ++j) {
        p[j] *= k.scale[j];
        q[j] = group_q;
        rest[j] = group_k;
      }
    }
    for_column_tiles(m, block, [&](int64_t col, const Place& at) {
      const auto x = read_x<T>(m.x, at, scratch.x);
      const auto t = kept_at(col, at);
      T* const to = static_cast<T*>(m.dx) + at.offset;
      const auto dx = result_tile(to, at.stride, at.cols, scratch.out);
      finish_columns(x, Tile<const C>{t.data, t.stride}, dx, at.rows, at.cols, k.mean + col, p + col, q + col,
                     rest + col);
      write_tile(to, at.stride, at.rows, at.cols, dx.data);
    }, true);
  }
}

template <typename T>
int64_t workspace_elements(const GroupNormModulate& m, bool backward) {
  const bool keep = backward && m.dx != nullptr && !std::is_same<T, Compute<T>>::value;
  if (!m.channels_last) return keep ? m.channels / m.groups * m.pixels : 0;
  const int64_t cols = most_columns(m);
  return Columns<Compute<T>>::kArrays * cols + (keep ? cols * m.pixels : 0);
}

template <typename T>
Group<Compute<T>>* groups_at(const GroupNormModulate& m, bool backward, void* workspace) {
  const int64_t bytes = workspace_elements<T>(m, backward) * static_cast<int64_t>(sizeof(Compute<T>));
  return reinterpret_cast<Group<Compute<T>>*>(static_cast<char*>(workspace) + (bytes + 15) / 16 * 16);
}

}  // namespace

int64_t group_norm_modulate_units(const GroupNormModulate& m) {
  return m.samples * (m.channels_last ? m.channel_blocks : m.groups);
}

int64_t group_norm_modulate_workspace(const GroupNormModulate& m, bool backward) {
  int64_t bytes = 0;
  with_dtype(m.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    bytes = workspace_elements<T>(m, backward) * static_cast<int64_t>(sizeof(Compute<T>));
    if (m.channels_last) bytes += 16 + m.groups * static_cast<int64_t>(sizeof(Group<Compute<T>>));
  });
  return bytes;
}

void group_norm_modulate_forward(const GroupNormModulate& m, int64_t begin, int64_t end, void* workspace) {
  with_dtype(m.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using C = Compute<T>;
    if (m.channels_last) {
      forward_channels_last<T>(m, begin, end, static_cast<C*>(workspace), groups_at<T>(m, false, workspace));
    } else {
      forward_contiguous<T>(m, begin, end);
    }
  });
}

void group_norm_modulate_backward(const GroupNormModulate& m, int64_t begin, int64_t end, void* workspace) {
  with_dtype(m.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using C = Compute<T>;
    if (m.channels_last) {
      backward_channels_last<T>(m, begin, end, static_cast<C*>(workspace), groups_at<T>(m, true, workspace));
    } else {
      backward_contiguous<T>(m, begin, end, static_cast<C*>(workspace));
    }
  });
}

void group_norm_modulate_sum(const GroupNormModulate& m, const void* parts, Gradient to) {
  with_dtype(m.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using C = Compute<T>;
    double sums[kTileRows];
    C rounded[kTileRows];
    for (int64_t c = 0; c < m.channels; c += kTileRows) {
      const int64_t size = std::min(kTileRows, m.channels - c);
      sum_samples(static_cast<const C*>(parts), m.samples, m.channels, c, size, sums);
      for (int64_t j = 0; j < size; ++j) rounded[j] = static_cast<C>(sums[j]);
      write_channels<T>(to, c, size, rounded);
    }
  });
}

}  // namespace strucfast
