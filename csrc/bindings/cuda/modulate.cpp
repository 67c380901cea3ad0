#include "cuda/modulate.cuh"

#include <tuple>

#include "common.h"

namespace strucfast::cuda {
namespace {

Tensor forward(const Tensor& x_in, const Tensor& scale_in, const Tensor& shift_in) {
  const Device device(x_in);
  const Native x(x_in);
  const Parameter scale(scale_in, x_in, x.channels_last), shift(shift_in, x_in, x.channels_last);
  Tensor y = empty_in_layout(x_in, x.channels_last, x_in.scalar_type());
  dispatch(x_in.scalar_type(), "_modulate_cuda", [&](auto element) {
    using T = decltype(element);
    check(modulate_forward<T>(pointer<T>(x.tensor), scale.operand, shift.operand, pointer<T>(y),
                              shape_of(x_in, x.channels_last), device.stream()),
          "_modulate_cuda");
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& scale_in,
                                            bool shift_per_pixel, int64_t mask) {
  const Device device(x_in);
  const Native x(x_in);
  const Tensor grad = in_layout(grad_in, x.channels_last);
  const Parameter scale(scale_in, x_in, x.channels_last);
  const bool want_x = mask & 1, want_scale = mask & 2, want_shift = mask & 4;
  const bool shift_like_x = shift_per_pixel && x_in.dim() > 2;
  const ScalarType type = x_in.scalar_type(), parameter_type = scale_in.scalar_type();
  Tensor dx = want_x ? empty_in_layout(x_in, x.channels_last, x_in.scalar_type()) : nothing(x_in, type);
  Tensor dscale = want_scale ? empty_gradient(x_in, parameter_type, scale.operand.per_pixel, x.channels_last)
                             : nothing(x_in, parameter_type);
  // The shift's values are not needed and its type is the scale's.
  const ScalarType shift_type = parameter_type;
  Tensor dshift =
      want_shift ? empty_gradient(x_in, shift_type, shift_like_x, x.channels_last) : nothing(x_in, shift_type);
  dispatch(type, "_modulate_backward_cuda", [&](auto element) {
    using T = decltype(element);
    const Shape shape = shape_of(x_in, x.channels_last);
    const Tensor workspace = torch::stable::new_empty(
        x_in, {modulate_workspace<T>(shape, scale.operand.per_pixel, shift_like_x)}, compute_type(type));
    check(modulate_backward<T>(pointer<T>(grad), pointer<T>(x.tensor), scale.operand, want_x ? pointer<T>(dx) : nullptr,
                               gradient_of(dscale, want_scale, scale.operand.per_pixel),
                               gradient_of(dshift, want_shift, shift_like_x), shape, pointer<Compute<T>>(workspace),
                               device.stream()),
          "_modulate_backward_cuda");
  });
  return {dx, dscale, dshift};
}

}  // namespace
}  // namespace strucfast::cuda

STABLE_TORCH_LIBRARY_IMPL(strucfast, STRUCFAST_CUDA_KEY, m) {
  m.impl("_modulate_cuda", TORCH_BOX(&strucfast::cuda::forward));
  m.impl("_modulate_backward_cuda", TORCH_BOX(&strucfast::cuda::backward));
}
