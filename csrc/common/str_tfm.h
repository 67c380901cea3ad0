#pragma once
#include "vec_math.h"

// The scale maps of the Str-Tfm: logit -> scale, all of them 1 at logit 0. The codes are those of the op schemas:
// the position of the name in strucfast/reference/_activations.py.
namespace strucfast {

enum class ScaleMap : int { kExp = 0, kExpHalf = 1, kSoftplusShift = 2, kSigmoid2 = 3, kOnePlus = 4 };
constexpr int kNumScaleMaps = 5;

template <ScaleMap M, typename T>
SF_HOST_DEVICE SF_INLINE T map_scale(T logit) {
  if constexpr (M == ScaleMap::kExp) {
    return vexp(logit);
  } else if constexpr (M == ScaleMap::kExpHalf) {
    return vexp(T(0.5) * logit);
  } else if constexpr (M == ScaleMap::kSoftplusShift) {
    const T x = logit + T(0.54132485461291811);  // log(e - 1)
    const T t = vexp(x < T(0) ? x : -x);
    const T w = T(1) + t;
    // log(1 + t) with the bits that the rounding of 1 + t lost put back.
    const T log1p = vlog(w) + (t - (w - T(1))) / w;
    return (x < T(0) ? T(0) : x) + log1p;
  } else if constexpr (M == ScaleMap::kSigmoid2) {
    return T(2) / (T(1) + vexp(-logit));
  } else {
    return T(1) + logit;
  }
}

// d scale / d logit from the scale itself.
template <ScaleMap M, typename T>
SF_HOST_DEVICE SF_INLINE T scale_slope(T scale) {
  if constexpr (M == ScaleMap::kExp) {
    return scale;
  } else if constexpr (M == ScaleMap::kExpHalf) {
    return T(0.5) * scale;
  } else if constexpr (M == ScaleMap::kSoftplusShift) {
    return -vexpm1(-scale);
  } else if constexpr (M == ScaleMap::kSigmoid2) {
    return scale * (T(1) - T(0.5) * scale);
  } else {
    return T(1);
  }
}

}  // namespace strucfast
