#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../common/half.h"
#include "../common/simd.h"
#include "stream.h"

// Kernels compute on tiles of the compute type. A float or double tensor is its own tile; a half-type tile is widened
// into scratch memory that stays in L1, so that the arithmetic is compiled once per compute type.
namespace strucfast {

template <typename T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <typename T>
using Compute = typename ComputeType<T>::type;

constexpr int64_t kTileSize = 2048;
constexpr int64_t kTileRows = 64;

enum class DType { kFloat, kDouble, kBFloat16, kFloat16 };

// A scale, shift, weight or bias: of x's dtype, or of the compute type when `wide`.
struct Parameter {
  const void* data = nullptr;
  bool wide = false;
  bool per_pixel = false;  // x's shape and layout instead of (N, C)
  int64_t stride = 0;      // elements from sample to sample where it is (N, C)
};

// Where a gradient goes; no data when it was not asked for.
struct Gradient {
  void* data = nullptr;
  bool wide = false;
};

template <typename C>
struct Tile {
  C* data;
  int64_t stride;
};

namespace {

template <typename T>
SF_CLONES void widen(const T* SF_RESTRICT from, float* SF_RESTRICT to, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) to[i] = load(from[i]);
}

// to[j] = value(j) for j < size, whole cache lines past the caches if `kStream`; ask(j) comes before each line.
template <bool kStream, typename T, typename Ask, typename Value>
SF_INLINE void write_row(T* SF_RESTRICT to, int64_t size, const Ask& ask, const Value& value) {
  constexpr int64_t lanes = 64 / sizeof(T);
  int64_t j = 0;
  if (kStream) {
    const int64_t misaligned = static_cast<int64_t>((-reinterpret_cast<uintptr_t>(to) & 63) / sizeof(T));
    for (const int64_t head = std::min(misaligned, size); j < head; ++j) store(to + j, value(j));
  }
  for (; j + lanes <= size; j += lanes) {
    ask(j);
    if (kStream) {
      alignas(64) T line[lanes];
#pragma omp simd
      for (int64_t l = 0; l < lanes; ++l) store(line + l, value(j + l));
      stream_line(line, to + j);
    } else {
#pragma omp simd
      for (int64_t l = 0; l < lanes; ++l) store(to + j + l, value(j + l));
    }
  }
  if (j < size) ask(j);
#pragma omp simd
  for (int64_t l = j; l < size; ++l) store(to + l, value(l));
}

template <typename T>
SF_CLONES void narrow(const float* SF_RESTRICT from, T* SF_RESTRICT to, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) store(to + i, from[i]);
}

// `scratch` holds rows x cols values.
template <typename T>
Tile<const Compute<T>> read_tile(const T* from, int64_t stride, int64_t rows, int64_t cols, Compute<T>* scratch) {
  if constexpr (std::is_same<T, Compute<T>>::value) {
    return {from, stride};
  } else {
    if (stride == cols) {
      widen(from, scratch, rows * cols);
    } else {
      for (int64_t r = 0; r < rows; ++r) widen(from + r * stride, scratch + r * cols, cols);
    }
    return {scratch, cols};
  }
}

// Where the results of a tile are computed; write_tile then brings them home. `stream`: past the caches.
template <typename T>
Tile<Compute<T>> result_tile(T* to, int64_t stride, int64_t cols, Compute<T>* scratch, bool stream = false) {
  if constexpr (std::is_same<T, Compute<T>>::value) {
    if (!stream) return {to, stride};
  }
  return {scratch, cols};
}

template <typename T>
void write_tile(T* to, int64_t stride, int64_t rows, int64_t cols, const Compute<T>* scratch, bool stream = false) {
  constexpr bool direct = std::is_same<T, Compute<T>>::value;
  if (direct && !stream) return;
  if (stride == cols) {
    cols *= rows;
    rows = 1;
  }
  for (int64_t r = 0; r < rows; ++r) {
    if constexpr (direct) {
      stream_bytes(reinterpret_cast<const char*>(scratch + r * cols), reinterpret_cast<char*>(to + r * stride),
                   cols * static_cast<int64_t>(sizeof(T)));
    } else {
      narrow(scratch + r * cols, to + r * stride, cols);
    }
  }
}

// Whether a result of so many elements is streamed.
template <typename T>
bool streams(int64_t elements) {
  return kCanStream && elements * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
}

template <typename T>
Tile<const Compute<T>> read_pixels(const Parameter& parameter, int64_t offset, int64_t stride, int64_t rows,
                                   int64_t cols, Compute<T>* scratch) {
  if (parameter.wide) return {static_cast<const Compute<T>*>(parameter.data) + offset, stride};
  return read_tile(static_cast<const T*>(parameter.data) + offset, stride, rows, cols, scratch);
}

template <typename T>
Tile<Compute<T>> result_pixels(const Gradient& gradient, int64_t offset, int64_t stride, int64_t cols,
                               Compute<T>* scratch) {
  if (gradient.wide) return {static_cast<Compute<T>*>(gradient.data) + offset, stride};
  return result_tile(static_cast<T*>(gradient.data) + offset, stride, cols, scratch);
}

template <typename T>
void write_pixels(const Gradient& gradient, int64_t offset, int64_t stride, int64_t rows, int64_t cols,
                  const Compute<T>* scratch) {
  if (!gradient.wide) write_tile(static_cast<T*>(gradient.data) + offset, stride, rows, cols, scratch);
}

// `size` values of a per-channel parameter from element `offset` on; `missing` where there is no parameter.
template <typename T>
void read_channels(const Parameter& parameter, int64_t offset, int64_t size, Compute<T> missing, Compute<T>* to) {
  if (parameter.data == nullptr) {
    std::fill(to, to + size, missing);
  } else if (parameter.wide) {
    std::copy_n(static_cast<const Compute<T>*>(parameter.data) + offset, size, to);
  } else {
    const T* from = static_cast<const T*>(parameter.data) + offset;
    for (int64_t i = 0; i < size; ++i) to[i] = load(from[i]);
  }
}

template <typename T>
void write_channels(const Gradient& gradient, int64_t offset, int64_t size, const Compute<T>* from) {
  if (gradient.data == nullptr) return;
  if (gradient.wide) {
    std::copy_n(from, size, static_cast<Compute<T>*>(gradient.data) + offset);
  } else {
    T* to = static_cast<T*>(gradient.data) + offset;
    for (int64_t i = 0; i < size; ++i) store(to + i, from[i]);
  }
}

}  // namespace

// Calls f with a null pointer of the element type.
template <typename F>
void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat: return f(static_cast<float*>(nullptr));
    case DType::kDouble: return f(static_cast<double*>(nullptr));
    case DType::kBFloat16: return f(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16: return f(static_cast<Float16*>(nullptr));
  }
}

}  // namespace strucfast
