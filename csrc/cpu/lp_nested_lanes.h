#pragma once
#include "../common/vec_math.h"
#include "lp_nested.h"

// One subspace at kLanes points at once: element (j, lane) of a tile lies at j * kLanes + lane, and every loop over the
// lanes vectorises. With e the exponent of the largest coordinate, read off its bits, all powers are 2^(integer) times
// a number near 1: between 1e-20 and 1e20 nothing over- or underflows unless the result itself does, and the logarithms
// that are multiplied by an exponent stay small, so their rounding does too. Subnormal coordinates count as 0.
namespace strucfast {

constexpr int kLanes = 128;

template <typename T>
struct LpMath;

template <>
struct LpMath<float> {
  static constexpr int32_t kSqrtHalf = 0x3f3504f3;
  // log2(1 + f) on [sqrt(1/2), sqrt(2)) - 1, fit error 5e-8.
  static SF_INLINE float log2_near_one(float f) {
    float p = -1.457562469e-1f;
    p = p * f + 2.368821575e-1f;
    p = p * f - 2.500614839e-1f;
    p = p * f + 2.867085976e-1f;
    p = p * f - 3.600880983e-1f;
    p = p * f + 4.809393895e-1f;
    p = p * f - 7.213571219e-1f;
    p = p * f + 1.442694773f;
    return p * f;
  }
  // 2^f on |f| <= 1/2, fit error 2e-9.
  static SF_INLINE float exp2_small(float f) {
    float p = 1.547589482e-4f;
    p = p * f + 1.34002801e-3f;
    p = p * f + 9.618005423e-3f;
    p = p * f + 5.550327753e-2f;
    p = p * f + 2.402265133e-1f;
    p = p * f + 6.931472063e-1f;
    return p * f + 1.0f;
  }
};

template <>
struct LpMath<double> {
  static constexpr int64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  static SF_INLINE double log2_near_one(double f) {
    // log(1 + f) = f - (f^2/2 - s (f^2/2 + tail)), the series of 2 atanh(s) with s = f / (f + 2).
    const double s = f / (f + 2.0), z = s * s, h = 0.5 * f * f;
    double p = 2.0 / 23.0;
    p = p * z + 2.0 / 21.0;
    p = p * z + 2.0 / 19.0;
    p = p * z + 2.0 / 17.0;
    p = p * z + 2.0 / 15.0;
    p = p * z + 2.0 / 13.0;
    p = p * z + 2.0 / 11.0;
    p = p * z + 2.0 / 9.0;
    p = p * z + 2.0 / 7.0;
    p = p * z + 2.0 / 5.0;
    p = p * z + 2.0 / 3.0;
    return (f - (h - s * (h + p * z))) * VecMath<double>::kLog2e;
  }
  static SF_INLINE double exp2_small(double f) {
    const double r = f * 0.69314718055994530942;
    return r * r * VecMath<double>::exp_tail(r) + r + 1.0;
  }
};

template <typename T>
struct LpLanes : VecMath<T> {
  using M = VecMath<T>;
  using Int = typename M::Int;
  using Unsigned = typename std::conditional<sizeof(T) == 4, uint32_t, uint64_t>::type;
  static constexpr Int kStep = Int(1) << M::kMantissa;  // one more in the exponent; also the smallest normal number
  static constexpr Int kInfinity = (2 * M::kBias + 1) * kStep;
  static constexpr Int kAbs = ~(Int(1) << (8 * sizeof(T) - 1));
  // Exponents within these limits keep the sums of two of them within a signed Int.
  static constexpr Int kLeast = 4 - 2 * M::kBias;
  static constexpr Int kMost = M::kBias - 7;

  static SF_INLINE Int bounded(Int x, Int low, Int high) {
    x = x < low ? low : x;
    return x > high ? high : x;
  }

  static SF_INLINE T from_int(Int n) {
    if (sizeof(T) == 4) return static_cast<T>(n);
    // Before AVX-512 no instruction converts 64-bit integers.
    const T magic = M::kMagic;
    return from_bits<T>(to_bits(magic) + n) - magic;
  }

  // log2 of a normal number from its bits; the exponent may lie outside the range of the type.
  static SF_INLINE T log2_bits(Int bits) {
    const Int e = (bits - LpMath<T>::kSqrtHalf) >> M::kMantissa;
    return from_int(e) + LpMath<T>::log2_near_one(from_bits<T>(bits - e * kStep) - T(1));
  }

  // 2^x = m 2^n.
  static SF_INLINE T exp2_split(T x, Int* n) {
    const T magic = M::kMagic, shifted = x + magic;
    *n = to_bits(shifted) - to_bits(magic);
    return LpMath<T>::exp2_small(x - (shifted - magic));
  }

  // 2^x for kLeast <= x <= kMost as bits, negative where the result is too small for the type.
  static SF_INLINE Int exp2_bits(T x) {
    const T magic = M::kMagic, shifted = x + magic;
    return to_bits(LpMath<T>::exp2_small(x - (shifted - magic))) +
           static_cast<Int>(static_cast<Unsigned>(to_bits(shifted)) << M::kMantissa);
  }

  // x 2^n, in two factors so that neither leaves the range of normal numbers.
  static SF_INLINE T scaled(T x, Int n) {
    n = bounded(n, kLeast, -kLeast);
    return x * power_of_two<T>(n >> 1) * power_of_two<T>(n - (n >> 1));
  }

  // What the loops hand on, per lane.
  Int largest[kLanes];     // bits of max |z_j|
  Int shift[kLanes];       // e in the exponent's place
  T unit[kLanes];          // 2^-e
  T log_largest[kLanes];   // log2(2^-e max |z_j|)
  T total[kLanes];         // sum_j of (|z_j| 2^-e)^p, in the general kind of (|z_j| / max)^p times max 2^-e
  T moment[kLanes];        // the same sum with log2(|z_j| / max) as weight
  T factor[kLanes];        // what every dz_j has in common
  Int raise[kLanes], room[kLanes];  // general kind: the exponent of that, and the bits above which it overflows
};

// The unit of length of every lane.
template <typename T>
SF_INLINE void lp_unit(LpLanes<T>& w, const T* SF_RESTRICT z, int64_t size) {
  using L = LpLanes<T>;
  using Int = typename L::Int;
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) w.largest[i] = to_bits(z[i]) & L::kAbs;
  for (int64_t j = 1; j < size; ++j) {
    const T* SF_RESTRICT row = z + j * kLanes;
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const Int a = to_bits(row[i]) & L::kAbs;
      w.largest[i] = a > w.largest[i] ? a : w.largest[i];
    }
  }
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    const Int exponent = L::bounded(w.largest[i] >> L::kMantissa, 1, 2 * L::kBias - 1);
    w.shift[i] = (exponent - L::kBias) * L::kStep;
    w.unit[i] = from_bits<T>((2 * L::kBias - exponent) * L::kStep);
    w.total[i] = 0;
    w.moment[i] = 0;
  }
}

// total and moment; in the general kind with kSlopes also the bits of (|z_j| / max)^(p - 1).
template <typename T, LpKind kKind, bool kSlopes>
SF_INLINE void lp_total(LpLanes<T>& w, const T* SF_RESTRICT z, typename LpLanes<T>::Int* SF_RESTRICT slopes,
                        int64_t size, T p) {
  using L = LpLanes<T>;
  using Int = typename L::Int;
  if (kKind == LpKind::kGeneral) {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const Int bits = w.largest[i] < L::kStep ? L::kBias * L::kStep : w.largest[i] - w.shift[i];
      w.log_largest[i] = L::log2_bits(bits);
    }
  }
  const T power = kSlopes ? p - T(1) : p;
  for (int64_t j = 0; j < size; ++j) {
    const T* SF_RESTRICT row = z + j * kLanes;
    Int* SF_RESTRICT slope = slopes + (kSlopes ? j * kLanes : 0);
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const Int a = to_bits(row[i]) & L::kAbs;
      const T length = from_bits<T>(a) * w.unit[i];
      if (kKind == LpKind::kOne) {
        w.total[i] += length;
      } else if (kKind == LpKind::kTwo) {
        w.total[i] += length * length;
      } else {
        const T log_ratio = L::log2_bits(a - w.shift[i]) - w.log_largest[i];
        T x = power * log_ratio;
        x = x < T(L::kLeast) ? T(L::kLeast) : x;
        x = x > T(L::kMost) ? T(L::kMost) : x;
        x = a < L::kStep ? T(L::kLeast) : x;
        const Int bits = L::exp2_bits(x);
        T term = from_bits<T>(bits > 0 ? bits : Int(0));
        if (kSlopes) {
          slope[i] = bits;
          term *= length;
          w.moment[i] += term * log_ratio;
        }
        w.total[i] += term;
      }
    }
  }
}

// moment for p = 1 and p = 2, with log2(2^-e |z_j|) as weight: log_total is relative to the same unit there.
template <typename T, LpKind kKind>
SF_INLINE void lp_moment(LpLanes<T>& w, const T* SF_RESTRICT z, int64_t size) {
  using L = LpLanes<T>;
  for (int64_t j = 0; j < size; ++j) {
    const T* SF_RESTRICT row = z + j * kLanes;
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const typename L::Int a = to_bits(row[i]) & L::kAbs;
      const T length = from_bits<T>(a) * w.unit[i];
      w.moment[i] += (kKind == LpKind::kTwo ? length * length : length) * L::log2_bits(a - w.shift[i]);
    }
  }
}

// What the short way below can do without units of length: coordinates between 2^-24 and 2^5, exponents to match.
template <typename T>
SF_INLINE bool lp_may_be_near(const LpSubspace<T>& s, T root) {
  return s.kind == LpKind::kGeneral && s.p >= T(0.5) && s.p <= T(4) && root >= T(0.5) && root <= T(4) && s.size <= 1024;
}

// total, moment and slopes of powers of the coordinates themselves. False: one of them lies outside of what that bears.
template <typename T, bool kSlopes>
SF_INLINE bool lp_total_near(LpLanes<T>& w, const T* SF_RESTRICT z, typename LpLanes<T>::Int* SF_RESTRICT slopes,
                             int64_t size, T p) {
  using L = LpLanes<T>;
  using Int = typename L::Int;
  constexpr Int kLow = (L::kBias - 24) * L::kStep, kHigh = (L::kBias + 5) * L::kStep;
  const T power = kSlopes ? p - T(1) : p;
  for (int64_t j = 0; j < size; ++j) {
    const T* SF_RESTRICT row = z + j * kLanes;
    Int* SF_RESTRICT slope = slopes + (kSlopes ? j * kLanes : 0);
    const bool first = j == 0;
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const Int a = to_bits(row[i]) & L::kAbs;
      // Both bounds in one comparison, as unsigned numbers.
      const Int outside = static_cast<typename L::Unsigned>(a - kLow) > typename L::Unsigned(kHigh - kLow) ? 1 : 0;
      const T logarithm = L::log2_bits(a);
      const Int bits = L::exp2_bits(power * logarithm);
      T term = from_bits<T>(bits);
      if (kSlopes) {
        slope[i] = bits;
        term *= from_bits<T>(a);
        w.moment[i] = (first ? T(0) : w.moment[i]) + term * logarithm;
      }
      w.total[i] = (first ? T(0) : w.total[i]) + term;
      w.shift[i] = (first ? Int(0) : w.shift[i]) | outside;
    }
  }
  Int any = 0;
#pragma omp simd reduction(| : any)
  for (int i = 0; i < kLanes; ++i) any |= w.shift[i];
  return any == 0;
}

template <typename T>
struct LpPower {
  T log_total, log_norm;  // log2 of sum_j (|z_j| / max)^p, and of v
  T mantissa;             // v^p0 / s = mantissa 2^exponent
  typename LpLanes<T>::Int exponent, unit_exponent;
  T energy;
};

// v and E of one lane. kSlopes says what total holds.
template <typename T, LpKind kKind, bool kSlopes>
SF_INLINE LpPower<T> lp_power(const LpLanes<T>& w, int i, const LpSubspace<T>& s, T inverse_p, T root, T root_high,
                              T root_low) {
  using L = LpLanes<T>;
  using Int = typename L::Int;
  LpPower<T> out;
  const bool empty = w.largest[i] < L::kStep;
  const T total = empty ? T(1) : w.total[i];
  T log_norm;
  out.log_total = L::log2_bits(to_bits(total));
  if (kKind == LpKind::kGeneral) {
    if (kSlopes) out.log_total -= w.log_largest[i];
    log_norm = w.log_largest[i] + out.log_total * inverse_p;
  } else {
    log_norm = kKind == LpKind::kTwo ? T(0.5) * out.log_total : out.log_total;
  }
  out.unit_exponent = w.shift[i] >> L::kMantissa;
  const T e = L::from_int(out.unit_exponent);
  out.log_norm = e + log_norm;
  // p0 (e + log_norm) with an exact product for the large part: root_high has few bits.
  const T magic = L::kMagic, large = root_high * e, rounded = large + magic;
  Int n;
  const T mantissa = L::exp2_split((large - (rounded - magic)) + (root_low * e + root * log_norm), &n);
  out.mantissa = mantissa * s.inverse_scale;
  out.exponent = n + (to_bits(rounded) - to_bits(magic));
  T energy = L::scaled(out.mantissa, out.exponent);
  // Infinity and NaN, which the arithmetic on bits above would take for numbers.
  energy = w.largest[i] >= L::kInfinity ? from_bits<T>(w.largest[i]) : energy;
  out.energy = empty ? T(0) : energy;
  return out;
}

}  // namespace strucfast
