#pragma once
#include <cstdint>

#include "../common/simd.h"
#include "transpose.h"

// Matrix products of small blocks that already lie in cache: C (rows, cols) = A (rows, depth) * B (depth, cols).
// B is read in panels: panel p holds columns [p * kPanel, (p + 1) * kPanel), packed as (depth, kPanel) and padded with
// zeros, or where it lies as the rows of a matrix.
// Every element of C is one sum in the order of depth, so a result does not depend on how the rows were grouped.
namespace strucfast {

// Registers of one instruction level: Bytes a vector, Rows x Vectors accumulators.
template <typename Scalar, int Bytes, int Rows, int Vectors>
struct Level {
  using T = Scalar;
  static constexpr int kLanes = Bytes / int(sizeof(T));
  static constexpr int kVectors = Vectors;
  static constexpr int kPanel = Vectors * kLanes;
  static constexpr int kRows = Rows;
  // Aligned to T only: rows of user tensors start anywhere.
  typedef T Vec __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
};

// What happens to a finished sum.
enum class Store {
  kPlain,     // c = sum
  kBias,      // c = sum + extra[col]
  kMultiply,  // c = sum * extra[row, col]
  kAdd,       // c = c + sum
};

// Memory that the next step reads, fetched into the second cache a piece with every block of the product before it.
struct Ahead {
  const char* at = nullptr;
  const char* end = nullptr;
  int64_t piece = 0;

  SF_INLINE void fetch() {
    for (const char* stop = end - at < piece ? end : at + piece; at < stop; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

template <typename T>
struct Panels {
  const T* data;
  int64_t row;    // from one row of a panel to the next
  int64_t panel;  // from one panel to the next
};

SF_INLINE int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <Store S, typename V>
SF_INLINE void finish(V* to, const V& sum, const V* extra) {
  if constexpr (S == Store::kPlain) *to = sum;
  if constexpr (S == Store::kBias) *to = sum + *extra;
  if constexpr (S == Store::kMultiply) *to = sum * *extra;
  if constexpr (S == Store::kAdd) *to += sum;
}

// One block of MR rows and NV vectors. A is read at a[r * lda + k], or transposed at a[k * lda + r].
template <class L, int MR, int NV, Store S, bool Transposed, typename T = typename L::T>
SF_INLINE void gemm_block(int64_t depth, const T* SF_RESTRICT a, int64_t lda, const T* SF_RESTRICT b, int64_t ldb,
                          T* SF_RESTRICT c, int64_t ldc, const T* SF_RESTRICT extra, int64_t ld_extra, int64_t cols) {
  using Vec = typename L::Vec;
  Vec acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = Vec{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec panel[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) panel[v] = *reinterpret_cast<const Vec*>(b + k * ldb + v * L::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const T value = Transposed ? a[k * lda + r] : a[r * lda + k];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] += panel[v] * value;
    }
  }
  // Only a kMultiply extra has rows.
  const int64_t extra_row = S == Store::kMultiply ? ld_extra : 0;
  if (cols >= NV * L::kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        finish<S>(reinterpret_cast<Vec*>(c + r * ldc + v * L::kLanes), acc[r][v],
                  reinterpret_cast<const Vec*>(extra + r * extra_row + v * L::kLanes));
      }
    }
    return;
  }
  T sums[MR][NV * L::kLanes];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) *reinterpret_cast<Vec*>(sums[r] + v * L::kLanes) = acc[r][v];
  }
  for (int r = 0; r < MR; ++r) {
    for (int64_t j = 0; j < cols; ++j) finish<S>(c + r * ldc + j, sums[r][j], extra + r * extra_row + j);
  }
}

template <class L, int NV, Store S, bool Transposed, typename T = typename L::T>
SF_INLINE void gemm_panel(int64_t rows, int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                          int64_t ldc, const T* extra, int64_t ld_extra, int64_t cols, Ahead& ahead) {
  const int64_t a_row = Transposed ? 1 : lda;
  const int64_t extra_row = S == Store::kMultiply ? ld_extra : 0;
  int64_t r = 0;
  for (; r + L::kRows <= rows; r += L::kRows) {
    ahead.fetch();
    gemm_block<L, L::kRows, NV, S, Transposed>(depth, a + r * a_row, lda, b, ldb, c + r * ldc, ldc,
                                               extra + r * extra_row, ld_extra, cols);
  }
  for (; r + 2 <= rows; r += 2) {
    gemm_block<L, 2, NV, S, Transposed>(depth, a + r * a_row, lda, b, ldb, c + r * ldc, ldc, extra + r * extra_row,
                                        ld_extra, cols);
  }
  if (r < rows) {
    gemm_block<L, 1, NV, S, Transposed>(depth, a + r * a_row, lda, b, ldb, c + r * ldc, ldc, extra + r * extra_row,
                                        ld_extra, cols);
  }
}

// Vectors of a panel that has this many columns left.
template <class L>
SF_INLINE int panel_vectors(int64_t left) {
  if (left > L::kPanel / 2) return L::kVectors;
  return L::kVectors > 2 && left > L::kLanes ? 2 : 1;
}

// The rows of b (depth, cols), row length ldb, can be read in place: the last panel is whole vectors.
template <class L>
SF_INLINE bool in_place(int64_t cols) {
  const int64_t left = cols % L::kPanel;
  return left == 0 || left == panel_vectors<L>(left) * L::kLanes;
}

// extra is padded like B (kBias) or has C's shape (kMultiply); the other stores do not read it.
template <class L, Store S, bool Transposed, typename T = typename L::T>
SF_INLINE void gemm(int64_t rows, int64_t cols, int64_t depth, const T* a, int64_t lda, const Panels<T>& b, T* c,
                    int64_t ldc, const T* extra, int64_t ld_extra, Ahead ahead = {}) {
  for (int64_t first = 0; first < cols; first += L::kPanel) {
    const T* panel = b.data + first / L::kPanel * b.panel;
    const int64_t left = cols - first;
    switch (panel_vectors<L>(left)) {
      case L::kVectors:
        gemm_panel<L, L::kVectors, S, Transposed>(rows, depth, a, lda, panel, b.row, c + first, ldc, extra + first,
                                                  ld_extra, left, ahead);
        break;
      case 1:
        gemm_panel<L, 1, S, Transposed>(rows, depth, a, lda, panel, b.row, c + first, ldc, extra + first, ld_extra,
                                        left, ahead);
        break;
      default:
        gemm_panel<L, 2, S, Transposed>(rows, depth, a, lda, panel, b.row, c + first, ldc, extra + first, ld_extra,
                                        left, ahead);
    }
  }
}

// Spreads `elements` from `from` on over the blocks of a product of (rows, cols).
template <class L, typename T>
SF_INLINE Ahead ahead_of(int64_t rows, int64_t cols, const T* from, int64_t elements) {
  const int64_t blocks = rows / L::kRows * ((cols + L::kPanel - 1) / L::kPanel);
  const char* at = reinterpret_cast<const char*>(from);
  const int64_t bytes = elements * int64_t(sizeof(T));
  return {at, at + bytes, round_up(bytes / (blocks > 0 ? blocks : 1) + 1, 64)};
}

template <class L, typename T>
SF_INLINE Panels<T> packed_panels(const T* data, int64_t depth) {
  return {data, L::kPanel, L::kPanel * depth};
}

// b (depth, cols) with row length ldb -> panels.
template <class L, typename T = typename L::T>
SF_INLINE void pack_panels(const T* SF_RESTRICT b, int64_t ldb, int64_t depth, int64_t cols, T* SF_RESTRICT panels) {
  using Vec = typename L::Vec;
  for (int64_t first = 0; first < cols; first += L::kPanel) {
    T* to = panels + first * depth;
    if (cols - first >= L::kPanel) {
      for (int64_t k = 0; k < depth; ++k) {
        const Vec* from = reinterpret_cast<const Vec*>(b + k * ldb + first);
#pragma GCC unroll 4
        for (int v = 0; v < L::kVectors; ++v) reinterpret_cast<Vec*>(to + k * L::kPanel)[v] = from[v];
      }
      continue;
    }
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t j = 0; j < L::kPanel; ++j) {
        to[k * L::kPanel + j] = first + j < cols ? b[k * ldb + first + j] : T(0);
      }
    }
  }
}

// The transpose of w (cols, depth), row length depth -> panels.
template <class L, typename T = typename L::T>
SF_INLINE void pack_transposed(const T* SF_RESTRICT w, int64_t depth, int64_t cols, T* SF_RESTRICT panels) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
  for (int64_t first = 0; first < cols; first += L::kPanel) {
    T* to = panels + first * depth;
    if constexpr (L::kPanel % 16 == 0) {
      if (cols - first >= L::kPanel) {
        gather<L::kPanel>(w + first * depth, depth, L::kPanel, depth, to);
        continue;
      }
    }
    for (int64_t j = 0; j < L::kPanel; j += 4) {
      const T* from = w + (first + j) * depth;
      int64_t k = 0;
#if defined(__clang__) || __GNUC__ >= 12
      if (first + j + 4 <= cols) {
        for (; k + 4 <= depth; k += 4) {
          const Four r0 = *reinterpret_cast<const Four*>(from + k);
          const Four r1 = *reinterpret_cast<const Four*>(from + depth + k);
          const Four r2 = *reinterpret_cast<const Four*>(from + 2 * depth + k);
          const Four r3 = *reinterpret_cast<const Four*>(from + 3 * depth + k);
          const Four low01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5);
          const Four low23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
          const Four high01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
          const Four high23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
          T* row = to + k * L::kPanel + j;
          *reinterpret_cast<Four*>(row) = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
          *reinterpret_cast<Four*>(row + L::kPanel) = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
          *reinterpret_cast<Four*>(row + 2 * L::kPanel) = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
          *reinterpret_cast<Four*>(row + 3 * L::kPanel) = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
        }
      }
#endif
      for (; k < depth; ++k) {
        for (int64_t i = 0; i < 4; ++i) to[k * L::kPanel + j + i] = first + j + i < cols ? from[i * depth + k] : T(0);
      }
    }
  }
}

}  // namespace strucfast
