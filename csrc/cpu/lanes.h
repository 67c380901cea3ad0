#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../common/vec_math.h"

#if defined(__GNUC__) && !defined(__clang__)
// Everything here is inlined, so no call ever passes a vector.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

// One vector register of an instruction level, for kernels whose register blocks differ by level.
namespace strucfast {

template <typename Scalar, int Bytes, int Rows>
struct Lanes {
  using T = Scalar;
  static constexpr int kBytes = Bytes;
  static constexpr int kLanes = Bytes / int(sizeof(T));
  // How many samples a kernel keeps in registers at a time.
  static constexpr int kRows = Rows;
  // Aligned to T only: torch aligns its memory to 64 bytes, a view of it starts anywhere.
  typedef T Vec __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
  typedef typename VecMath<T>::Int Int __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
};

template <class L>
SF_INLINE typename L::Vec load(const typename L::T* from) {
  return *reinterpret_cast<const typename L::Vec*>(from);
}

template <class L>
SF_INLINE void store(typename L::T* to, typename L::Vec value) {
  *reinterpret_cast<typename L::Vec*>(to) = value;
}

template <class L>
SF_INLINE typename L::Vec all_lanes(typename L::T value) {
  return typename L::Vec{} + value;
}

// `first` keeps its NaN, as vexp's clamp does: a NaN compares false.
template <class Vec>
SF_INLINE Vec maximum(Vec first, Vec second) {
  return first < second ? second : first;
}

template <class L, typename F>
SF_INLINE typename L::Vec each_lane(const F& f) {
  typename L::T values[L::kLanes];
  for (int l = 0; l < L::kLanes; ++l) values[l] = f(l);
  return load<L>(values);
}

// 2^x for x <= 128 (float) or 1024 (double): relative error 2e-7 or 4e-15, 0 below the normal numbers, NaN for NaN.
template <class L>
SF_INLINE typename L::Vec exp2_lanes(typename L::Vec x) {
  using T = typename L::T;
  using M = VecMath<T>;
  using Vec = typename L::Vec;
  using Int = typename L::Int;
  if constexpr (L::kBytes == 64 && std::is_same<T, float>::value) {
    // AVX-512 takes the fraction and applies the exponent in an instruction each; GCC has no portable name for them.
    Vec f, y;
    asm("vreduceps $9, %1, %0" : "=v"(f) : "v"(x));
    // 2^f on [0, 1), fit error 8e-8.
    Vec p = f * 1.867134826e-3f + 9.017020579e-3f;
    p = p * f + 5.579991904e-2f;
    p = p * f + 2.401644495e-1f;
    p = p * f + 6.931513116e-1f;
    p = p * f + 1.0f;
    asm("vscalefps %2, %1, %0" : "=v"(y) : "v"(p), "v"(x));
    return y;
  } else {
    // Clamped where the exponent field is 0, which makes the power of two 0.
    x = maximum(x, all_lanes<L>(-T(M::kBias)));
    // The exponent's bias rides in the rounding constant, so that one shift makes the power of two.
    constexpr T magic = M::kMagic + T(M::kBias);
    const Vec shifted = x + magic;
    const Vec f = x - (shifted - magic);
    Vec p;
    if constexpr (std::is_same<T, float>::value) {
      // 2^f on |f| <= 1/2, fit error 9e-8.
      p = f * 1.326472712e-3f + 9.671512645e-3f;
      p = p * f + 5.550733743e-2f;
      p = p * f + 2.402224209e-1f;
      p = p * f + 6.931469776e-1f;
      p = p * f + 1.0f;
    } else {
      const Vec r = f * 0.69314718055994530942;
      Vec tail = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
      tail = tail * r + 1.0 / 39916800.0;
      tail = tail * r + 1.0 / 3628800.0;
      tail = tail * r + 1.0 / 362880.0;
      tail = tail * r + 1.0 / 40320.0;
      tail = tail * r + 1.0 / 5040.0;
      tail = tail * r + 1.0 / 720.0;
      tail = tail * r + 1.0 / 120.0;
      tail = tail * r + 1.0 / 24.0;
      tail = tail * r + 1.0 / 6.0;
      tail = tail * r + 0.5;
      p = (tail * r + 1.0) * r + 1.0;
    }
    Int bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    bits = bits << M::kMantissa;
    Vec power;
    std::memcpy(&power, &bits, sizeof(power));
    return p * power;
  }
}

template <class L>
SF_INLINE typename L::T sum_lanes(typename L::Vec v) {
  typename L::T sum = 0;
  for (int l = 0; l < L::kLanes; ++l) sum += v[l];
  return sum;
}

template <class L>
SF_INLINE typename L::T max_lanes(typename L::Vec v) {
  typename L::T best = v[0];
  for (int l = 1; l < L::kLanes; ++l) best = best < v[l] ? v[l] : best;
  return best;
}

// GCC has the builtin from version 12 on.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SF_LANES_SHUFFLE 1
#endif
#endif

#if defined(SF_LANES_SHUFFLE)
template <class Vec, int... Low, int... High>
SF_INLINE Vec add_shuffled(Vec a, Vec b, std::integer_sequence<int, Low...>, std::integer_sequence<int, High...>) {
  return __builtin_shufflevector(a, b, Low...) + __builtin_shufflevector(a, b, High...);
}

// Where lane K of a folded pair comes from: Parts parts of two vectors, each the sum of two halves of a part.
constexpr int fold_source(int k, int lanes, int parts, int high) {
  const int width = lanes / parts, part = k / width, within = k % width, of_a = parts / 2;
  const int start = part < of_a ? part * 2 * width : lanes + (part - of_a) * 2 * width;
  return start + within + high * width;
}

template <class Vec, int Parts, int... K>
SF_INLINE Vec fold_pair(Vec a, Vec b, std::integer_sequence<int, K...>) {
  constexpr int lanes = sizeof...(K);
  return add_shuffled(a, b, std::integer_sequence<int, fold_source(K, lanes, Parts, 0)...>{},
                      std::integer_sequence<int, fold_source(K, lanes, Parts, 1)...>{});
}

template <class Vec, int Step, int... K>
SF_INLINE Vec fold_within(Vec a, std::integer_sequence<int, K...>) {
  return a + __builtin_shufflevector(a, a, (K ^ Step)...);
}

#endif

// sums[i] = sum of the lanes of v[i], i < 4: shuffles shared by the four.
template <class L>
SF_INLINE void sum_lanes_of_four(const typename L::Vec* v, typename L::T* sums) {
#if defined(SF_LANES_SHUFFLE)
  using Vec = typename L::Vec;
  constexpr int n = L::kLanes;
  if constexpr (n >= 4) {
    constexpr auto all = std::make_integer_sequence<int, n>{};
    Vec r = fold_pair<Vec, 4>(fold_pair<Vec, 2>(v[0], v[1], all), fold_pair<Vec, 2>(v[2], v[3], all), all);
    if constexpr (n >= 16) r = fold_within<Vec, 2>(r, all);
    if constexpr (n >= 8) r = fold_within<Vec, 1>(r, all);
    for (int i = 0; i < 4; ++i) sums[i] = r[i * (n / 4)];
    return;
  }
#endif
  for (int i = 0; i < 4; ++i) sums[i] = sum_lanes<L>(v[i]);
}

}  // namespace strucfast
