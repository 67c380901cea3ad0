#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd.h"

// exp, expm1 and log as straight-line code without calls or branches, so that `omp simd` loops around them vectorise
// at every instruction level. float: within 2 ulp over the whole range, subnormals included; double: within 2e-15
// relative. NaN gives NaN, overflow gives inf. Products and sums are left to the compiler to contract to fma.
// The polynomials are weighted least-maximum fits (float) and Taylor series (double).
namespace strucfast {

template <typename T>
struct VecMath;

template <>
struct VecMath<float> {
  using Int = int32_t;
  static constexpr int kMantissa = 23;
  static constexpr int32_t kBias = 127;
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  static constexpr float kLog2e = 1.44269504088896341f;
  // ln 2 in two parts; n times the first is exact, so the reduction needs no fma.
  static constexpr float kLn2Hi = 0.693359375f;
  static constexpr float kLn2Lo = -2.12194440e-4f;
  static constexpr float kExpLow = -104.0f;
  static constexpr float kExpHigh = 89.0f;
  static constexpr float kNormalLow = -87.0f;  // exp of it is still a normal number
  static constexpr float kNormalHigh = 88.0f;
  // (exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2, fit error 3e-9 of exp(r).
  static SF_HOST_DEVICE SF_INLINE float exp_tail(float r) {
    return (((1.381446418e-3f * r + 8.368781722e-3f) * r + 4.166839434e-2f) * r + 1.66665201e-1f) * r + 4.999999341e-1f;
  }
};

template <>
struct VecMath<double> {
  using Int = int64_t;
  static constexpr int kMantissa = 52;
  static constexpr int64_t kBias = 1023;
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLog2e = 1.4426950408889634074;
  static constexpr double kLn2Hi = 6.93145751953125e-1;
  static constexpr double kLn2Lo = 1.42860682030941723212e-6;
  static constexpr double kExpLow = -746.0;
  static constexpr double kExpHigh = 710.0;
  static constexpr double kNormalLow = -708.0;
  static constexpr double kNormalHigh = 709.0;
  static SF_HOST_DEVICE SF_INLINE double exp_tail(double r) {
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    return p * r + 0.5;
  }
};

template <typename T>
SF_HOST_DEVICE SF_INLINE typename VecMath<T>::Int to_bits(T value) {
  typename VecMath<T>::Int bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <typename T>
SF_HOST_DEVICE SF_INLINE T from_bits(typename VecMath<T>::Int bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// 2^n for n in the exponent range of normal numbers.
template <typename T>
SF_HOST_DEVICE SF_INLINE T power_of_two(typename VecMath<T>::Int n) {
  // Shifted as unsigned: a NaN leaves garbage in n, and a signed overflow would be undefined.
  using Unsigned = typename std::conditional<sizeof(T) == 4, uint32_t, uint64_t>::type;
  return from_bits<T>(static_cast<typename VecMath<T>::Int>(static_cast<Unsigned>(n + VecMath<T>::kBias)
                                                            << VecMath<T>::kMantissa));
}

// x = n ln 2 + r. Returns exp(r) - 1 and leaves n.
template <typename T>
SF_HOST_DEVICE SF_INLINE T exp_reduced_minus_one(T x, typename VecMath<T>::Int* n) {
  using M = VecMath<T>;
  const T shifted = x * M::kLog2e + M::kMagic;
  const T rounded = shifted - M::kMagic;
  *n = static_cast<typename M::Int>(to_bits(shifted)) - to_bits(M::kMagic);
  const T r = (x - rounded * M::kLn2Hi) - rounded * M::kLn2Lo;
  return r * r * M::exp_tail(r) + r;
}

// exp for callers that keep x within [kNormalLow, kNormalHigh] (or NaN). For activations, at the least cost:
// relative error 2e-7 + 6e-8 |x| (float, the second part only without fma), 2e-15 (double).
SF_HOST_DEVICE SF_INLINE float vexp_bounded(float x) {
  using M = VecMath<float>;
  // The exponent's bias rides in the rounding constant, so that one shift makes the power of two.
  constexpr float magic = M::kMagic + static_cast<float>(M::kBias);
  const float shifted = x * M::kLog2e + magic;
  const float f = x * M::kLog2e - (shifted - magic);
  // 2^f on |f| <= 1/2, fit error 9e-8.
  float p = 1.326472712e-3f;
  p = p * f + 9.671512645e-3f;
  p = p * f + 5.550733743e-2f;
  p = p * f + 2.402224209e-1f;
  p = p * f + 6.931469776e-1f;
  p = p * f + 1.0f;
  return p * from_bits<float>(static_cast<int32_t>(static_cast<uint32_t>(to_bits(shifted)) << M::kMantissa));
}

SF_HOST_DEVICE SF_INLINE double vexp_bounded(double x) {
  int64_t n;
  const double q = exp_reduced_minus_one(x, &n);
  const double s = power_of_two<double>(n);
  return q * s + s;
}

template <typename T>
SF_HOST_DEVICE SF_INLINE T clamp_keep_nan(T x, T low, T high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// min(x, high) for high > 0, and max(x, low) for low < 0, on the bit patterns: two integer instructions where a compare
// and a blend per bound would cost four. A NaN does not survive.
template <typename T>
SF_HOST_DEVICE SF_INLINE T at_most(T x, T high) {
  const auto bits = to_bits(x), bound = to_bits(high);
  return from_bits<T>(bits < bound ? bits : bound);
}

template <typename T>
SF_HOST_DEVICE SF_INLINE T at_least(T x, T low) {
  using Unsigned = typename std::conditional<sizeof(T) == 4, uint32_t, uint64_t>::type;
  const Unsigned bits = static_cast<Unsigned>(to_bits(x)), bound = static_cast<Unsigned>(to_bits(low));
  return from_bits<T>(static_cast<typename VecMath<T>::Int>(bits < bound ? bits : bound));
}

template <typename T>
SF_HOST_DEVICE SF_INLINE T vexp(T x) {
  using M = VecMath<T>;
  typename M::Int n;
  const T q = exp_reduced_minus_one(clamp_keep_nan(x, M::kExpLow, M::kExpHigh), &n);
  // Two factors, so that neither leaves the normal range: the product overflows and goes subnormal by itself.
  const typename M::Int half = n >> 1;
  return (q + T(1)) * power_of_two<T>(half) * power_of_two<T>(n - half);
}

// exp(x) - 1 without cancellation near 0; x above kNormalHigh gives a huge finite number, not inf.
template <typename T>
SF_HOST_DEVICE SF_INLINE T vexpm1(T x) {
  using M = VecMath<T>;
  typename M::Int n;
  const T q = exp_reduced_minus_one(clamp_keep_nan(x, M::kNormalLow, M::kNormalHigh), &n);
  const T s = power_of_two<T>(n);
  return q * s + (s - T(1));
}

template <typename T>
SF_HOST_DEVICE SF_INLINE T vtanh(T x) {
  // Beyond |x| = 20 tanh is 1 to the last bit of a double.
  const T m = vexpm1(clamp_keep_nan(T(2) * x, T(-40), T(40)));
  return m / (m + T(2));
}

// x = m 2^e with m in [sqrt(1/2), sqrt(2)); subnormals are scaled up first.
template <typename T>
SF_HOST_DEVICE SF_INLINE T split_exponent(T x, T* e) {
  using M = VecMath<T>;
  using Int = typename M::Int;
  constexpr Int one = M::kBias << M::kMantissa;
  const bool tiny = x < from_bits<T>(Int(1) << M::kMantissa);
  const T scaled = tiny ? x * from_bits<T>((M::kBias + M::kMantissa + 2) << M::kMantissa) : x;
  const Int bits = to_bits(scaled);
  const Int offset = one - to_bits(T(0.70710678118654752440));
  const Int exponent = ((bits + offset) >> M::kMantissa) - M::kBias;
  // Exact below 2^mantissa, and unlike an int64 conversion it vectorises on AVX2.
  const T magic = M::kMagic;
  const T as_float = from_bits<T>(to_bits(magic) + exponent) - magic;
  *e = tiny ? as_float - T(M::kMantissa + 2) : as_float;
  return from_bits<T>(bits - exponent * (Int(1) << M::kMantissa));
}

template <typename T>
SF_HOST_DEVICE SF_INLINE T log_edges(T x, T result) {
  const T inf = from_bits<T>((2 * VecMath<T>::kBias + 1) << VecMath<T>::kMantissa);
  result = x < inf ? result : x;  // +inf and NaN
  result = x == T(0) ? -inf : result;
  return x < T(0) ? inf - inf : result;
}

SF_HOST_DEVICE SF_INLINE float vlog(float x) {
  using M = VecMath<float>;
  float e;
  const float f = split_exponent(x, &e) - 1.0f;
  // (log(1 + f) - f + f^2 / 2) / f^3, fit error 6e-9 of log(1 + f).
  float p = -7.634497758e-2f;
  p = p * f + 1.276157754e-1f;
  p = p * f - 1.316018216e-1f;
  p = p * f + 1.420175792e-1f;
  p = p * f - 1.662335736e-1f;
  p = p * f + 2.000122688e-1f;
  p = p * f - 2.500082103e-1f;
  p = p * f + 3.333333171e-1f;
  const float z = f * f;
  const float small = (f * z * p + e * M::kLn2Lo) - 0.5f * z;
  return log_edges(x, e * M::kLn2Hi + (f + small));
}

SF_HOST_DEVICE SF_INLINE double vlog(double x) {
  using M = VecMath<double>;
  double e;
  const double f = split_exponent(x, &e) - 1.0;
  // log(1 + f) = 2 atanh(s) = f - f^2/2 + s (f^2/2 + tail), with tail the series of 2 atanh(s)/s - 2.
  const double s = f / (f + 2.0);
  const double z = s * s;
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
  const double h = 0.5 * f * f;
  return log_edges(x, e * M::kLn2Hi + (f - (h - (s * (h + p * z) + e * M::kLn2Lo))));
}

}  // namespace strucfast
