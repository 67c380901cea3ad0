#include "../../cpu/group_norm_modulate.h"

#include <tuple>

#include "common.h"

namespace strucfast::bindings {
namespace {

GroupNormModulate problem(const Layout& layout, ScalarType dtype, int64_t num_groups, int64_t activation) {
  GroupNormModulate m{};
  m.dtype = kernel_dtype(dtype);
  m.samples = layout.samples;
  m.channels = layout.channels;
  m.pixels = layout.pixels;
  m.groups = num_groups;
  STD_TORCH_CHECK(num_groups > 0 && m.channels % num_groups == 0, "strucfast: num_groups must divide the channels");
  STD_TORCH_CHECK(activation >= 0 && activation < kNumActivations, "strucfast: no such activation code");
  m.activation = static_cast<Activation>(activation);
  // One pixel is both layouts; rows of C channels are longer than rows of one pixel.
  m.channels_last = layout.channels_last || layout.pixels == 1;
  const int64_t step = std::max<int64_t>(1, m.channels / num_groups);
  m.channel_blocks = std::min(num_groups, channel_blocks(m.samples, m.channels, step));
  return m;
}

template <typename Kernel>
void run(const GroupNormModulate& m, bool backward, Kernel* kernel) {
  const int64_t workspace = group_norm_modulate_workspace(m, backward);
  const int64_t elements = m.samples * m.channels * m.pixels;
  parallel_units(group_norm_modulate_units(m), elements, [&](int64_t begin, int64_t end) {
    // Aligned to cache lines; kilobytes, but for half types one float copy of a group or a sample.
    const std::unique_ptr<unsigned char[]> memory(new unsigned char[workspace + 64]);
    const auto address = reinterpret_cast<uintptr_t>(memory.get());
    kernel(m, begin, end, memory.get() + (64 - address % 64));
  });
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x_in, int64_t num_groups, OptionalTensor weight,
                                           OptionalTensor bias, OptionalTensor scale, OptionalTensor shift,
                                           int64_t activation, double eps) {
  const Layout layout = native_layout(x_in);
  const ScalarType dtype = x_in.scalar_type();
  const Tensor x = in_layout(x_in, layout);
  GroupNormModulate m = problem(layout, dtype, num_groups, activation);
  m.eps = eps;
  m.weight = parameter(&weight, layout, dtype);
  m.bias = parameter(&bias, layout, dtype);
  m.scale = parameter(&scale, layout, dtype);
  m.shift = parameter(&shift, layout, dtype);
  Tensor y = empty_as(layout, dtype);
  Tensor mean = empty({layout.samples, num_groups}, compute_type(dtype));
  Tensor rstd = empty({layout.samples, num_groups}, compute_type(dtype));
  m.x = x.const_data_ptr();
  m.y = y.mutable_data_ptr();
  m.mean = mean.mutable_data_ptr();
  m.rstd = rstd.mutable_data_ptr();
  run(m, false, &group_norm_modulate_forward);
  return {y, mean, rstd};
}

// A (C) gradient, summed from its parts.
Tensor summed(bool wanted, const OptionalTensor& parameter, const GroupNormModulate& m, const void* parts,
              ScalarType dtype) {
  if (!wanted) return no_tensor(dtype);
  const ScalarType own = parameter->scalar_type();
  Tensor t = empty({m.channels}, own);
  group_norm_modulate_sum(m, parts, {t.mutable_data_ptr(), is_wide(own, dtype)});
  return t;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_in, const Tensor& x_in,
                                                            const Tensor& mean_in, const Tensor& rstd_in,
                                                            int64_t num_groups, OptionalTensor weight,
                                                            OptionalTensor bias, OptionalTensor scale,
                                                            OptionalTensor shift, int64_t activation, int64_t mask) {
  const Layout layout = native_layout(x_in);
  const ScalarType dtype = x_in.scalar_type();
  const Tensor x = in_layout(x_in, layout), grad = in_layout(grad_in, layout);
  const Tensor mean = dense(mean_in), rstd = dense(rstd_in);
  GroupNormModulate m = problem(layout, dtype, num_groups, activation);
  m.weight = parameter(&weight, layout, dtype);
  m.bias = parameter(&bias, layout, dtype);
  m.scale = parameter(&scale, layout, dtype);
  m.shift = parameter(&shift, layout, dtype);
  const auto wants = [&](int bit, const OptionalTensor& t) { return (mask >> bit & 1) && t.has_value(); };
  const auto dtype_of = [&](const OptionalTensor& t) { return t.has_value() ? t->scalar_type() : dtype; };
  Tensor dx = (mask & 1) ? empty_as(layout, dtype) : no_tensor(dtype);
  Tensor dscale = wants(3, scale) ? parameter_gradient(true, m.scale.per_pixel, dtype_of(scale), layout, dtype, &m.dscale)
                                  : no_tensor(dtype);
  Tensor dshift = wants(4, shift) ? parameter_gradient(true, m.shift.per_pixel, dtype_of(shift), layout, dtype, &m.dshift)
                                  : no_tensor(dtype);
  const Tensor parts = empty({2, layout.samples, layout.channels}, compute_type(dtype));
  const int64_t part_bytes = (dtype == ScalarType::Double ? 8 : 4) * layout.samples * layout.channels;
  m.x = x.const_data_ptr();
  m.grad = grad.const_data_ptr();
  m.mean = const_cast<void*>(mean.const_data_ptr());
  m.rstd = const_cast<void*>(rstd.const_data_ptr());
  m.dx = (mask & 1) ? dx.mutable_data_ptr() : nullptr;
  m.dweight_parts = parts.mutable_data_ptr();
  m.dbias_parts = static_cast<char*>(m.dweight_parts) + part_bytes;
  run(m, true, &group_norm_modulate_backward);
  Tensor dweight = summed(wants(1, weight), weight, m, m.dweight_parts, dtype);
  Tensor dbias = summed(wants(2, bias), bias, m, m.dbias_parts, dtype);
  return {dx, dweight, dbias, dscale, dshift};
}

}  // namespace
}  // namespace strucfast::bindings

STABLE_TORCH_LIBRARY_IMPL(strucfast, CPU, m) {
  m.impl("_group_norm_modulate_cpp", TORCH_BOX(&strucfast::bindings::forward));
  m.impl("_group_norm_modulate_backward_cpp", TORCH_BOX(&strucfast::bindings::backward));
}
