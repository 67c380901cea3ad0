// What ctypes calls: the torch-free kernels and the vector maths, compiled for one instruction set.
#include "common/activation.h"
#include "common/half.h"
#include "cpu/adain.h"
#include "cpu/group_norm_modulate.h"
#include "cpu/modulate.h"

#include <vector>

using namespace strucfast;

namespace {

template <typename T>
void activation(int code, const T* x, T* value, T* slope, int64_t size) {
  const auto all = [&](auto a) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const ValueAndSlope<T> result = activate_with_slope<decltype(a)::value>(x[i]);
      value[i] = result.value;
      slope[i] = result.slope;
    }
  };
  switch (static_cast<Activation>(code)) {
    case Activation::kIdentity: return all(std::integral_constant<Activation, Activation::kIdentity>{});
    case Activation::kMish: return all(std::integral_constant<Activation, Activation::kMish>{});
    case Activation::kSilu: return all(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kRelu: return all(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kElu: return all(std::integral_constant<Activation, Activation::kElu>{});
    case Activation::kTanh: return all(std::integral_constant<Activation, Activation::kTanh>{});
  }
}

template <typename T>
void vector_math(int which, const T* x, T* y, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    y[i] = which == 0 ? vexp(x[i]) : which == 1 ? vexpm1(x[i]) : which == 2 ? vlog(x[i]) : vtanh(x[i]);
  }
}

}  // namespace

extern "C" {

void activation_float(int code, const float* x, float* value, float* slope, int64_t size) {
  activation(code, x, value, slope, size);
}
void activation_double(int code, const double* x, double* value, double* slope, int64_t size) {
  activation(code, x, value, slope, size);
}
void math_float(int which, const float* x, float* y, int64_t size) { vector_math(which, x, y, size); }
void math_double(int which, const double* x, double* y, int64_t size) { vector_math(which, x, y, size); }

void widen_halves(int is_bfloat16, const uint16_t* x, float* y, int64_t size) {
  for (int64_t i = 0; i < size; ++i) y[i] = is_bfloat16 ? load(BFloat16{x[i]}) : load(Float16{x[i]});
}
void narrow_halves(int is_bfloat16, const float* x, uint16_t* y, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    BFloat16 b;
    Float16 h;
    store(&b, x[i]);
    store(&h, x[i]);
    y[i] = is_bfloat16 ? b.bits : h.bits;
  }
}

// sizes: N, C, S, groups. Arrays of the compute type; gradients: dx, dweight, dbias, dscale, dshift.
void group_norm_modulate(int is_double, const int64_t* sizes, int channels_last, int code, double eps, const void* x,
                         const void* weight, const void* bias, const void* scale, const void* shift, void* y,
                         void* mean, void* rstd, const void* grad, void* const* gradients) {
  GroupNormModulate m{};
  m.dtype = is_double ? DType::kDouble : DType::kFloat;
  m.samples = sizes[0];
  m.channels = sizes[1];
  m.pixels = sizes[2];
  m.groups = sizes[3];
  m.channels_last = channels_last != 0;
  m.channel_blocks = 1;
  m.activation = static_cast<Activation>(code);
  m.eps = eps;
  m.x = x;
  m.weight = {weight, true, false, 0};
  m.bias = {bias, true, false, 0};
  m.scale = {scale, true, false, m.channels};
  m.shift = {shift, true, false, m.channels};
  m.y = y;
  m.mean = mean;
  m.rstd = rstd;
  m.grad = grad;
  m.dx = gradients[0];
  m.dscale = {gradients[3], true};
  m.dshift = {gradients[4], true};
  std::vector<double> weight_parts(m.samples * m.channels), bias_parts(m.samples * m.channels);
  m.dweight_parts = weight_parts.data();
  m.dbias_parts = bias_parts.data();
  std::vector<double> workspace(group_norm_modulate_workspace(m, true) / sizeof(double) + 1);
  const int64_t units = group_norm_modulate_units(m);
  group_norm_modulate_forward(m, 0, units, workspace.data());
  group_norm_modulate_backward(m, 0, units, workspace.data());
  group_norm_modulate_sum(m, m.dweight_parts, {gradients[1], true});
  group_norm_modulate_sum(m, m.dbias_parts, {gradients[2], true});
}

void modulate(int is_double, const int64_t* sizes, int channels_last, const void* x, const void* scale,
              const void* shift, void* y, const void* grad, void* const* gradients) {
  Modulate m{};
  m.dtype = is_double ? DType::kDouble : DType::kFloat;
  m.samples = sizes[0];
  m.channels = sizes[1];
  m.pixels = sizes[2];
  m.channels_last = channels_last != 0;
  m.channel_blocks = 1;
  m.x = x;
  m.scale = {scale, true, false, m.channels};
  m.shift = {shift, true, false, m.channels};
  m.y = y;
  m.grad = grad;
  m.dx = gradients[0];
  m.dscale = {gradients[1], true};
  m.dshift = {gradients[2], true};
  modulate_forward(m, 0, modulate_units(m));
  modulate_backward(m, 0, modulate_units(m));
}

// sizes: N, C, S; maps: bit 0 a scale per pixel, bit 1 a shift. gradients: dx, dscale, dshift.
void adain(int is_double, const int64_t* sizes, int channels_last, int maps, double eps, const void* x,
           const void* scale, const void* shift, void* y, void* mean, void* rstd, const void* grad,
           void* const* gradients) {
  AdaIN m{};
  m.dtype = is_double ? DType::kDouble : DType::kFloat;
  m.samples = sizes[0];
  m.channels = sizes[1];
  m.pixels = sizes[2];
  m.channels_last = channels_last != 0;
  m.channel_blocks = 1;
  m.eps = eps;
  m.x = x;
  m.scale = {scale, true, (maps & 1) != 0, m.channels};
  m.shift = {shift, true, (maps & 2) != 0, m.channels};
  m.y = y;
  m.mean = mean;
  m.rstd = rstd;
  m.grad = grad;
  m.dx = gradients[0];
  m.dscale = {gradients[1], true};
  m.dshift = {gradients[2], true};
  adain_forward(m, 0, adain_units(m));
  adain_backward(m, 0, adain_units(m));
}
}
