#pragma once
#include "vec_math.h"

// Kernels of squared distances, for pairwise statistics: k, and f with dk/da = f (a - b).
namespace strucfast {

enum class PairKernel { kRbf, kImq };

// exp for x <= 0, correct to 2 ulp; what would be below the least normal number stays at 1e-38.
template <typename T>
SF_HOST_DEVICE SF_INLINE T exp_of_negative(T x) {
  typename VecMath<T>::Int n;
  // Written so that a NaN passes.
  const T q = exp_reduced_minus_one(x < VecMath<T>::kNormalLow ? VecMath<T>::kNormalLow : x, &n);
  const T s = power_of_two<T>(n);
  return q * s + s;
}

// What a bandwidth b contributes: rbf k = exp(-s / 2 b^2), f = -k / b^2; imq k = b / (b + s), f = -2 k^2 / b.
template <typename T>
struct Bandwidth {
  T b, scale, factor;
};

template <typename T>
Bandwidth<T> bandwidth(PairKernel kernel, double b) {
  const double factor = kernel == PairKernel::kRbf ? -1.0 / (b * b) : -2.0 / b;
  return {static_cast<T>(b), static_cast<T>(-0.5 / (b * b)), static_cast<T>(factor)};
}

template <PairKernel kKernel, typename T>
SF_HOST_DEVICE SF_INLINE T pair_kernel(T square, const Bandwidth<T>& width) {
  return kKernel == PairKernel::kRbf ? exp_of_negative(square * width.scale) : width.b / (width.b + square);
}

template <PairKernel kKernel, typename T>
SF_HOST_DEVICE SF_INLINE T pair_factor(T k, const Bandwidth<T>& width) {
  return kKernel == PairKernel::kRbf ? k * width.factor : k * k * width.factor;
}

}  // namespace strucfast
