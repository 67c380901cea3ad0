#include "../../cpu/modulate.h"

#include <tuple>

#include "common.h"

namespace strucfast::bindings {
namespace {

Modulate problem(const Layout& layout, ScalarType dtype) {
  Modulate m{};
  m.dtype = kernel_dtype(dtype);
  m.samples = layout.samples;
  m.channels = layout.channels;
  m.pixels = layout.pixels;
  // One pixel is both layouts; rows of C channels are longer than rows of one pixel.
  m.channels_last = layout.channels_last || layout.pixels == 1;
  m.channel_blocks = channel_blocks(layout.samples, layout.channels, 1);
  return m;
}

// One pixel and dense parameters: each number has its own scale and shift, so that the N samples are one long row.
void flatten(Modulate* m, bool shift_is_dense) {
  const bool scale_is_dense = m->scale.per_pixel || m->scale.stride == m->channels || m->samples == 1;
  if (m->pixels != 1 || !scale_is_dense || !shift_is_dense) return;
  m->channels *= m->samples;
  m->samples = 1;
  m->channel_blocks = channel_blocks(1, m->channels, 1);
  m->scale.per_pixel = m->shift.per_pixel = m->shift_per_pixel = true;
}

template <typename Kernel>
void run(const Modulate& m, const Kernel& kernel) {
  parallel_units(modulate_units(m), m.samples * m.channels * m.pixels,
                 [&](int64_t begin, int64_t end) { kernel(m, begin, end); });
}

Tensor modulate(const Tensor& x_in, const Tensor& scale_in, const Tensor& shift_in) {
  const Layout layout = native_layout(x_in);
  const ScalarType dtype = x_in.scalar_type();
  const Tensor x = in_layout(x_in, layout);
  OptionalTensor scale = scale_in, shift = shift_in;
  Modulate m = problem(layout, dtype);
  m.scale = parameter(&scale, layout, dtype);
  m.shift = parameter(&shift, layout, dtype);
  flatten(&m, m.shift.per_pixel || m.shift.stride == m.channels || m.samples == 1);
  Tensor y = empty_as(layout, dtype);
  m.x = x.const_data_ptr();
  m.y = y.mutable_data_ptr();
  run(m, [](const auto&... arguments) { strucfast::modulate_forward(arguments...); });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> modulate_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& scale_in,
                                                     bool shift_per_pixel, int64_t mask) {
  const Layout layout = native_layout(x_in);
  const ScalarType dtype = x_in.scalar_type(), parameter_dtype = scale_in.scalar_type();
  const Tensor x = in_layout(x_in, layout), grad = in_layout(grad_in, layout);
  OptionalTensor scale = scale_in;
  Modulate m = problem(layout, dtype);
  m.scale = parameter(&scale, layout, dtype);
  m.shift_per_pixel = shift_per_pixel;
  Tensor dx = (mask & 1) ? empty_as(layout, dtype) : no_tensor(dtype);
  Tensor dscale = parameter_gradient(mask & 2, m.scale.per_pixel, parameter_dtype, layout, dtype, &m.dscale);
  Tensor dshift = parameter_gradient(mask & 4, shift_per_pixel, parameter_dtype, layout, dtype, &m.dshift);
  // The gradient of the shift is this op's own tensor, so it is dense.
  flatten(&m, true);
  m.x = x.const_data_ptr();
  m.grad = grad.const_data_ptr();
  m.dx = (mask & 1) ? dx.mutable_data_ptr() : nullptr;
  run(m, [](const auto&... arguments) { strucfast::modulate_backward(arguments...); });
  return {dx, dscale, dshift};
}

}  // namespace
}  // namespace strucfast::bindings

STABLE_TORCH_LIBRARY_IMPL(strucfast, CPU, m) {
  m.impl("_modulate_cpp", TORCH_BOX(&strucfast::bindings::modulate));
  m.impl("_modulate_backward_cpp", TORCH_BOX(&strucfast::bindings::modulate_backward));
}
