#pragma once
#include "vec_math.h"

// Activations with their derivatives, shared by the CPU and the CUDA kernels. The codes are those of the op schemas:
// the position of the name in strucfast/reference/_activations.py.
namespace strucfast {

enum class Activation : int { kIdentity = 0, kMish = 1, kSilu = 2, kRelu = 3, kElu = 4, kTanh = 5 };
constexpr int kNumActivations = 6;

#if defined(__CUDA_ARCH__)
// The special-function unit: 2 + |x| ulp for the exponential, 1 ulp for the reciprocal, below the activations' own needs.
SF_HOST_DEVICE SF_INLINE float activation_exp(float x) { return __expf(x); }
SF_HOST_DEVICE SF_INLINE float activation_reciprocal(float x) { return __fdividef(1.0f, x); }
SF_HOST_DEVICE SF_INLINE double activation_reciprocal(double x) { return 1.0 / x; }
SF_HOST_DEVICE SF_INLINE double activation_exp(double x) { return exp(x); }
SF_HOST_DEVICE SF_INLINE float activation_expm1(float x) { return expm1f(x); }
SF_HOST_DEVICE SF_INLINE double activation_expm1(double x) { return expm1(x); }
#else
// The arguments below are all within the bounds of vexp_bounded.
template <typename T>
SF_INLINE T activation_exp(T x) { return vexp_bounded(x); }
template <typename T>
SF_INLINE T activation_reciprocal(T x) { return T(1) / x; }
template <typename T>
SF_INLINE T activation_expm1(T x) { return vexpm1(x); }
#endif

template <typename T>
struct ValueAndSlope {
  T value;
  T slope;
};

// How a NaN argument is treated: it gives NaN, or, for callers that make their result NaN themselves, anything.
enum class Nan { kKeep, kIgnore };

template <Nan kNan, typename T>
SF_HOST_DEVICE SF_INLINE T bounded_below(T u, T low) {
  if constexpr (kNan == Nan::kKeep) return u < low ? low : u;
  return at_least(u, low);
}

template <Nan kNan, typename T>
SF_HOST_DEVICE SF_INLINE T bounded_above(T u, T high) {
  if constexpr (kNan == Nan::kKeep) return u > high ? high : u;
  return at_most(u, high);
}

// act(u) and act'(u); at -inf mish and silu give their limit 0 to within 2e-36.
template <Activation A, Nan kNan = Nan::kKeep, typename T>
SF_HOST_DEVICE SF_INLINE ValueAndSlope<T> activate_with_slope(T u) {
  constexpr T low = VecMath<T>::kNormalLow;
  if constexpr (A == Activation::kMish) {
    // One exp: tanh(log(1 + e)) = h / (h + 1) with h = e (e + 2) / 2; beyond u = 20 that is 1 (float), 40 (double).
    const T v = bounded_below<kNan>(u, low);
    const T c = bounded_above<kNan>(v, sizeof(T) == 4 ? T(20) : T(40));
    const T e = activation_exp(c);
    const T h = e * (e * T(0.5) + T(1));
    const T r = activation_reciprocal(h + T(1));
    const T ratio = h * r;
    return {v * ratio, (c * ((h + h - e) * r)) * r + ratio};
  } else if constexpr (A == Activation::kSilu) {
    const T v = bounded_below<kNan>(u, low);
    const T c = bounded_above<kNan>(v, -low);
    const T e = activation_exp(-c);
    const T s = activation_reciprocal(e + T(1));
    return {v * s, (c * (e * s)) * s + s};
  } else if constexpr (A == Activation::kRelu) {
    return {u < T(0) ? T(0) : u, u <= T(0) ? T(0) : T(1)};
  } else if constexpr (A == Activation::kElu) {
    const T negative = u > T(0) ? T(0) : u;
    const T m = activation_expm1(negative);
    return {u > T(0) ? u : m, u > T(0) ? T(1) : m + T(1)};
  } else if constexpr (A == Activation::kTanh) {
    // From exp(2 |u|): 1 - t^2 would lose its digits in saturation. Beyond |u| = 20 tanh is 1 to the last bit.
    const T doubled = T(2) * (u < T(0) ? -u : u);
    const T m = activation_expm1(doubled > T(40) ? T(40) : doubled);
    const T r = T(1) / (m + T(2));
    const T t = m * r;
    return {u < T(0) ? -t : t, T(4) * ((m + T(1)) * r) * r};
  } else {
    return {u, T(1)};
  }
}

template <Activation A, Nan kNan = Nan::kKeep, typename T>
SF_HOST_DEVICE SF_INLINE T activate(T u) {
  return activate_with_slope<A, kNan>(u).value;
}

}  // namespace strucfast
