#pragma once
#include "../common/activation.h"
#include "../common/str_tfm.h"
#include "small_gemm.h"
#include "str_tfm.h"

// The elementwise passes of the Str-Tfm over tiles of rows: activations and scale maps with their slopes, each chosen
// once per tile or row and then straight vector code.
namespace strucfast {

template <Activation A, typename T>
SF_INLINE void activate_rows(int64_t rows, int64_t width, const T* pre, int64_t ld_pre, T* out, int64_t ld_out) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = pre + r * ld_pre;
    T* to = out + r * ld_out;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) to[j] = activate<A>(from[j]);
  }
}

template <typename T>
SF_INLINE void activate_rows(int activation, int64_t rows, int64_t width, const T* pre, int64_t ld_pre, T* out,
                             int64_t ld_out) {
  if (ld_pre == width && ld_out == width) {
    width *= rows;
    rows = 1;
  }
  switch (static_cast<Activation>(activation)) {
    case Activation::kMish: return activate_rows<Activation::kMish>(rows, width, pre, ld_pre, out, ld_out);
    case Activation::kSilu: return activate_rows<Activation::kSilu>(rows, width, pre, ld_pre, out, ld_out);
    case Activation::kRelu: return activate_rows<Activation::kRelu>(rows, width, pre, ld_pre, out, ld_out);
    case Activation::kElu: return activate_rows<Activation::kElu>(rows, width, pre, ld_pre, out, ld_out);
    case Activation::kTanh: return activate_rows<Activation::kTanh>(rows, width, pre, ld_pre, out, ld_out);
    case Activation::kIdentity: return activate_rows<Activation::kIdentity>(rows, width, pre, ld_pre, out, ld_out);
  }
}

// act(pre) as panels of depth kStrTfmTile (they become the right factor of a weight gradient), act'(pre) as rows.
template <class L, Activation A, typename T = typename L::T>
SF_INLINE void activate_panels(int64_t rows, int64_t width, const T* SF_RESTRICT pre, int64_t ld_pre,
                               T* SF_RESTRICT panels, T* SF_RESTRICT slope, int64_t ld_slope) {
  for (int64_t first = 0; first < width; first += L::kPanel) {
    T* panel = panels + first * kStrTfmTile;
    const int64_t cols = width - first;
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = pre + r * ld_pre + first;
      T* to = panel + r * L::kPanel;
      T* to_slope = slope + r * ld_slope + first;
      if (cols >= L::kPanel) {
#pragma omp simd
        for (int64_t j = 0; j < L::kPanel; ++j) {
          const ValueAndSlope<T> act = activate_with_slope<A>(from[j]);
          to[j] = act.value;
          to_slope[j] = act.slope;
        }
        continue;
      }
      for (int64_t j = 0; j < L::kPanel; ++j) {
        const ValueAndSlope<T> act = activate_with_slope<A>(j < cols ? from[j] : T(0));
        to[j] = act.value;
        to_slope[j] = j < cols ? act.slope : T(0);
      }
    }
  }
}

template <class L, typename T = typename L::T>
SF_INLINE void activate_panels(int activation, int64_t rows, int64_t width, const T* pre, int64_t ld_pre, T* panels,
                               T* slope, int64_t ld_slope) {
  switch (static_cast<Activation>(activation)) {
    case Activation::kMish:
      return activate_panels<L, Activation::kMish>(rows, width, pre, ld_pre, panels, slope, ld_slope);
    case Activation::kSilu:
      return activate_panels<L, Activation::kSilu>(rows, width, pre, ld_pre, panels, slope, ld_slope);
    case Activation::kRelu:
      return activate_panels<L, Activation::kRelu>(rows, width, pre, ld_pre, panels, slope, ld_slope);
    case Activation::kElu:
      return activate_panels<L, Activation::kElu>(rows, width, pre, ld_pre, panels, slope, ld_slope);
    case Activation::kTanh:
      return activate_panels<L, Activation::kTanh>(rows, width, pre, ld_pre, panels, slope, ld_slope);
    case Activation::kIdentity:
      return activate_panels<L, Activation::kIdentity>(rows, width, pre, ld_pre, panels, slope, ld_slope);
  }
}

template <ScaleMap M, typename T>
SF_INLINE void map_row(int64_t channels, const T* SF_RESTRICT logits, T* SF_RESTRICT scale) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) scale[c] = map_scale<M>(logits[c]);
}

template <typename T>
SF_INLINE void map_row(int scale_map, int64_t channels, const T* logits, T* scale) {
  switch (static_cast<ScaleMap>(scale_map)) {
    case ScaleMap::kExp: return map_row<ScaleMap::kExp>(channels, logits, scale);
    case ScaleMap::kExpHalf: return map_row<ScaleMap::kExpHalf>(channels, logits, scale);
    case ScaleMap::kSoftplusShift: return map_row<ScaleMap::kSoftplusShift>(channels, logits, scale);
    case ScaleMap::kSigmoid2: return map_row<ScaleMap::kSigmoid2>(channels, logits, scale);
    case ScaleMap::kOnePlus: return map_row<ScaleMap::kOnePlus>(channels, logits, scale);
  }
}

template <ScaleMap M, typename T>
SF_INLINE void unmap_row(int64_t channels, const T* SF_RESTRICT grad, const T* SF_RESTRICT scale,
                         T* SF_RESTRICT delta) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) delta[c] = grad[c] * scale_slope<M>(scale[c]);
}

template <typename T>
SF_INLINE void unmap_row(int scale_map, int64_t channels, const T* grad, const T* scale, T* delta) {
  switch (static_cast<ScaleMap>(scale_map)) {
    case ScaleMap::kExp: return unmap_row<ScaleMap::kExp>(channels, grad, scale, delta);
    case ScaleMap::kExpHalf: return unmap_row<ScaleMap::kExpHalf>(channels, grad, scale, delta);
    case ScaleMap::kSoftplusShift: return unmap_row<ScaleMap::kSoftplusShift>(channels, grad, scale, delta);
    case ScaleMap::kSigmoid2: return unmap_row<ScaleMap::kSigmoid2>(channels, grad, scale, delta);
    case ScaleMap::kOnePlus: return unmap_row<ScaleMap::kOnePlus>(channels, grad, scale, delta);
  }
}

}  // namespace strucfast
