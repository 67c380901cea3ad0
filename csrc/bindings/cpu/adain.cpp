#include "../../cpu/adain.h"

#include <tuple>

#include "common.h"

namespace strucfast::bindings {
namespace {

AdaIN problem(const Layout& layout, ScalarType dtype, const Tensor& statistics) {
  AdaIN m{};
  m.dtype = kernel_dtype(dtype);
  m.samples = layout.samples;
  m.channels = layout.channels;
  m.pixels = layout.pixels;
  // One pixel is both layouts; rows of C channels are longer than rows of one pixel.
  m.channels_last = layout.channels_last || layout.pixels == 1;
  m.channel_blocks = channel_blocks(layout.samples, layout.channels, 1);
  const int64_t bytes = (dtype == ScalarType::Double ? 8 : 4) * m.samples * m.channels;
  m.mean = const_cast<void*>(statistics.const_data_ptr());
  m.rstd = static_cast<char*>(m.mean) + bytes;
  return m;
}

std::tuple<Tensor, Tensor> forward(const Tensor& x_in, const Tensor& scale_in, const Tensor& shift_in, double eps) {
  const Layout layout = native_layout(x_in);
  const ScalarType dtype = x_in.scalar_type();
  const Tensor x = in_layout(x_in, layout);
  OptionalTensor scale = scale_in, shift = shift_in;
  Tensor y = empty_as(layout, dtype);
  Tensor statistics = empty({2, layout.samples, layout.channels}, compute_type(dtype));
  if (x.numel() == 0) {
    torch::stable::zero_(statistics);
    return {y, statistics};
  }
  AdaIN m = problem(layout, dtype, statistics);
  m.eps = eps;
  m.scale = parameter(&scale, layout, dtype);
  m.shift = parameter(&shift, layout, dtype);
  m.x = x.const_data_ptr();
  m.y = y.mutable_data_ptr();
  parallel_units(adain_units(m), x.numel(), [&](int64_t begin, int64_t end) { adain_forward(m, begin, end); });
  return {y, statistics};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& statistics_in,
                                            const Tensor& scale_in, bool shift_per_pixel, int64_t mask) {
  const Layout layout = native_layout(x_in);
  const ScalarType dtype = x_in.scalar_type(), parameter_dtype = scale_in.scalar_type();
  const Tensor x = in_layout(x_in, layout), grad = in_layout(grad_in, layout);
  const Tensor statistics = dense(statistics_in);
  OptionalTensor scale = scale_in;
  AdaIN m = problem(layout, dtype, statistics);
  m.scale = parameter(&scale, layout, dtype);
  m.shift.per_pixel = shift_per_pixel;
  Tensor dx = (mask & 1) ? empty_as(layout, dtype) : no_tensor(dtype);
  Tensor dscale = parameter_gradient(mask & 2, m.scale.per_pixel, parameter_dtype, layout, dtype, &m.dscale);
  Tensor dshift = parameter_gradient(mask & 4, shift_per_pixel, parameter_dtype, layout, dtype, &m.dshift);
  if (x.numel() == 0) {
    torch::stable::zero_(dscale);
    torch::stable::zero_(dshift);
    return {dx, dscale, dshift};
  }
  m.x = x.const_data_ptr();
  m.grad = grad.const_data_ptr();
  m.dx = (mask & 1) ? dx.mutable_data_ptr() : nullptr;
  parallel_units(adain_units(m), x.numel(), [&](int64_t begin, int64_t end) { adain_backward(m, begin, end); });
  return {dx, dscale, dshift};
}

}  // namespace
}  // namespace strucfast::bindings

STABLE_TORCH_LIBRARY_IMPL(strucfast, CPU, m) {
  m.impl("_adain_cpp", TORCH_BOX(&strucfast::bindings::forward));
  m.impl("_adain_backward_cpp", TORCH_BOX(&strucfast::bindings::backward));
}
