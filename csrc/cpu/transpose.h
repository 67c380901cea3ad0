#pragma once
#include <cstdint>
#include <cstring>

#include "../common/simd.h"

// Rows to lanes and back: columns of up to kLanes rows (a multiple of 16) become rows of a tile of stride kLanes. Four
// columns go together through registers, sixteen rows at a time, so that the tile is written and read in whole vectors.
namespace strucfast {

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SF_HAS_SHUFFLES 1
#endif
#endif

#if defined(SF_HAS_SHUFFLES)
template <typename T>
struct Vectors {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  typedef T Eight __attribute__((vector_size(8 * sizeof(T))));
  typedef T Sixteen __attribute__((vector_size(16 * sizeof(T))));
};

// In every quarter, the four vectors as rows of a 4 x 4 matrix become its columns.
template <typename V>
SF_INLINE void transpose_quarters(V& a, V& b, V& c, V& d) {
#define SF_LOW 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define SF_HIGH 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define SF_FIRST 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define SF_SECOND 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
  const V ab_low = __builtin_shufflevector(a, b, SF_LOW), ab_high = __builtin_shufflevector(a, b, SF_HIGH);
  const V cd_low = __builtin_shufflevector(c, d, SF_LOW), cd_high = __builtin_shufflevector(c, d, SF_HIGH);
  a = __builtin_shufflevector(ab_low, cd_low, SF_FIRST);
  b = __builtin_shufflevector(ab_low, cd_low, SF_SECOND);
  c = __builtin_shufflevector(ab_high, cd_high, SF_FIRST);
  d = __builtin_shufflevector(ab_high, cd_high, SF_SECOND);
#undef SF_LOW
#undef SF_HIGH
#undef SF_FIRST
#undef SF_SECOND
}

// Four elements of rows i, i + 4, i + 8 and i + 12.
template <typename T>
SF_INLINE void load_rows(const T* from, int64_t stride, typename Vectors<T>::Sixteen* to) {
  typename Vectors<T>::Four a, b, c, d;
  std::memcpy(&a, from, sizeof(a));
  std::memcpy(&b, from + 4 * stride, sizeof(a));
  std::memcpy(&c, from + 8 * stride, sizeof(a));
  std::memcpy(&d, from + 12 * stride, sizeof(a));
  const typename Vectors<T>::Eight low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
  const typename Vectors<T>::Eight high = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7);
  *to = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

template <typename T>
SF_INLINE void store_rows(const typename Vectors<T>::Sixteen& v, T* to, int64_t stride) {
  const typename Vectors<T>::Four a = __builtin_shufflevector(v, v, 0, 1, 2, 3);
  const typename Vectors<T>::Four b = __builtin_shufflevector(v, v, 4, 5, 6, 7);
  const typename Vectors<T>::Four c = __builtin_shufflevector(v, v, 8, 9, 10, 11);
  const typename Vectors<T>::Four d = __builtin_shufflevector(v, v, 12, 13, 14, 15);
  std::memcpy(to, &a, sizeof(a));
  std::memcpy(to + 4 * stride, &b, sizeof(a));
  std::memcpy(to + 8 * stride, &c, sizeof(a));
  std::memcpy(to + 12 * stride, &d, sizeof(a));
}

template <int kLanes, typename T>
SF_INLINE void gather_block(const T* from, int64_t stride, T* to) {
  typename Vectors<T>::Sixteen a, b, c, d;
  load_rows(from, stride, &a);
  load_rows(from + stride, stride, &b);
  load_rows(from + 2 * stride, stride, &c);
  load_rows(from + 3 * stride, stride, &d);
  transpose_quarters(a, b, c, d);
  std::memcpy(to, &a, sizeof(a));
  std::memcpy(to + kLanes, &b, sizeof(a));
  std::memcpy(to + 2 * kLanes, &c, sizeof(a));
  std::memcpy(to + 3 * kLanes, &d, sizeof(a));
}

template <int kLanes, typename T>
SF_INLINE void scatter_block(const T* from, T* to, int64_t stride) {
  typename Vectors<T>::Sixteen a, b, c, d;
  std::memcpy(&a, from, sizeof(a));
  std::memcpy(&b, from + kLanes, sizeof(a));
  std::memcpy(&c, from + 2 * kLanes, sizeof(a));
  std::memcpy(&d, from + 3 * kLanes, sizeof(a));
  transpose_quarters(a, b, c, d);
  store_rows<T>(a, to, stride);
  store_rows<T>(b, to + stride, stride);
  store_rows<T>(c, to + 2 * stride, stride);
  store_rows<T>(d, to + 3 * stride, stride);
}
#endif

// Columns of a tile of rows, the rows innermost; rows beyond the last are 1, which needs no special care.
template <int kLanes, typename T>
SF_INLINE void gather(const T* from, int64_t stride, int64_t rows, int64_t size, T* to) {
  int64_t begin = 0;
#if defined(SF_HAS_SHUFFLES)
  if (rows == kLanes) {
    // Sixteen rows by sixteen columns: rows that lie a power of two apart would push each other out of the cache.
    for (int64_t stop = 0; begin + 4 <= size; begin = stop) {
      stop = begin + 16 <= size ? begin + 16 : size / 4 * 4;
      for (int i = 0; i < kLanes; i += 16) {
        const T* rows_from = from + i * stride;
        for (int64_t j = begin; j < stop; j += 4) gather_block<kLanes>(rows_from + j, stride, to + j * kLanes + i);
      }
    }
  }
#endif
  for (int64_t j = begin; j < size; ++j) {
    for (int64_t i = 0; i < rows; ++i) to[j * kLanes + i] = from[i * stride + j];
    for (int64_t i = rows; i < kLanes; ++i) to[j * kLanes + i] = T(1);
  }
}

template <int kLanes, typename T>
SF_INLINE void scatter(const T* from, int64_t rows, int64_t size, T* to, int64_t stride) {
  int64_t begin = 0;
#if defined(SF_HAS_SHUFFLES)
  if (rows == kLanes) {
    for (; begin + 4 <= size; begin += 4) {
      for (int i = 0; i < kLanes; i += 16) scatter_block<kLanes>(from + begin * kLanes + i, to + i * stride + begin, stride);
    }
  }
#endif
  for (int64_t j = begin; j < size; ++j) {
    for (int64_t i = 0; i < rows; ++i) to[i * stride + j] = from[j * kLanes + i];
  }
}

#undef SF_HAS_SHUFFLES

}  // namespace strucfast
