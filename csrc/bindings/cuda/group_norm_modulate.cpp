#include "cuda/group_norm_modulate.cuh"

#include <optional>
#include <tuple>

#include "common.h"

namespace strucfast::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

// The four parameters in the kernels' form; keeps the tensors alive.
struct Parameters {
  Parameter weight, bias, scale, shift;
  Parameters(const OptionalTensor& w, const OptionalTensor& b, const OptionalTensor& s, const OptionalTensor& t,
             const Tensor& x, bool channels_last)
      : weight(w, x, channels_last),
        bias(b, x, channels_last),
        scale(s, x, channels_last),
        shift(t, x, channels_last) {}
  GroupNormParameters of(const Shape& shape, int64_t groups, int64_t activation) const {
    return {
        weight.operand, bias.operand, scale.operand, shift.operand, shape, groups, static_cast<Activation>(activation)};
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x_in, int64_t groups, const OptionalTensor& weight,
                                           const OptionalTensor& bias, const OptionalTensor& scale,
                                           const OptionalTensor& shift, int64_t activation, double eps) {
  const Device device(x_in);
  const Native x(x_in);
  const Parameters parameters(weight, bias, scale, shift, x_in, x.channels_last);
  const ScalarType type = x_in.scalar_type();
  Tensor y = empty_in_layout(x_in, x.channels_last, type);
  Tensor mean = torch::stable::new_empty(x_in, {x_in.size(0), groups}, compute_type(type));
  Tensor rstd = torch::stable::new_empty(x_in, {x_in.size(0), groups}, compute_type(type));
  dispatch(type, "_group_norm_modulate_cuda", [&](auto element) {
    using T = decltype(element);
    check(group_norm_modulate_forward<T>(
              pointer<T>(x.tensor), parameters.of(shape_of(x_in, x.channels_last), groups, activation), eps,
              pointer<T>(y), pointer<Compute<T>>(mean), pointer<Compute<T>>(rstd), device.stream()),
          "_group_norm_modulate_cuda");
  });
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_in, const Tensor& x_in,
                                                            const Tensor& mean, const Tensor& rstd, int64_t groups,
                                                            const OptionalTensor& weight, const OptionalTensor& bias,
                                                            const OptionalTensor& scale, const OptionalTensor& shift,
                                                            int64_t activation, int64_t mask) {
  const Device device(x_in);
  const Native x(x_in);
  const Tensor grad = in_layout(grad_in, x.channels_last);
  // The shift's values play no part in its gradient, so a strided one is not copied.
  const Parameters parameters(weight, bias, scale, std::nullopt, x_in, x.channels_last);
  const ScalarType type = x_in.scalar_type();
  const bool want_x = mask & 1;
  const bool want_weight = (mask & 2) && weight, want_bias = (mask & 4) && bias;
  const bool want_scale = (mask & 8) && scale, want_shift = (mask & 16) && shift;
  const bool shift_per_pixel = shift && shift->dim() > 2;
  const auto vector_like = [&](const OptionalTensor& parameter, bool wanted) {
    return wanted ? torch::stable::new_empty(x_in, {x_in.size(1)}, parameter->scalar_type()) : nothing(x_in, type);
  };
  Tensor dx = want_x ? empty_in_layout(x_in, x.channels_last, type) : nothing(x_in, type);
  Tensor dweight = vector_like(weight, want_weight), dbias = vector_like(bias, want_bias);
  Tensor dscale = want_scale
                      ? empty_gradient(x_in, scale->scalar_type(), parameters.scale.operand.per_pixel, x.channels_last)
                      : nothing(x_in, type);
  Tensor dshift =
      want_shift ? empty_gradient(x_in, shift->scalar_type(), shift_per_pixel, x.channels_last) : nothing(x_in, type);
  const Shape shape = shape_of(x_in, x.channels_last);
  if (shape.size() == 0) {
    // No kernel runs, and a sum over nothing is zero.
    for (Tensor* empty : {&dweight, &dbias, &dscale, &dshift}) torch::stable::zero_(*empty);
    return {dx, dweight, dbias, dscale, dshift};
  }
  const Tensor workspace = torch::stable::new_empty(x_in, {4 * x_in.size(0) * x_in.size(1)}, compute_type(type));
  dispatch(type, "_group_norm_modulate_backward_cuda", [&](auto element) {
    using T = decltype(element);
    using A = Compute<T>;
    const GroupNormBackward<T> tensors{pointer<T>(grad),
                                       pointer<T>(x.tensor),
                                       pointer<A>(mean),
                                       pointer<A>(rstd),
                                       want_x ? pointer<T>(dx) : nullptr,
                                       gradient_of(dweight, want_weight, false),
                                       gradient_of(dbias, want_bias, false),
                                       gradient_of(dscale, want_scale, parameters.scale.operand.per_pixel),
                                       gradient_of(dshift, want_shift, shift_per_pixel),
                                       pointer<A>(workspace)};
    check(group_norm_modulate_backward<T>(tensors, parameters.of(shape, groups, activation), device.stream()),
          "_group_norm_modulate_backward_cuda");
  });
  return {dx, dweight, dbias, dscale, dshift};
}

}  // namespace
}  // namespace strucfast::cuda

STABLE_TORCH_LIBRARY_IMPL(strucfast, STRUCFAST_CUDA_KEY, m) {
  m.impl("_group_norm_modulate_cuda", TORCH_BOX(&strucfast::cuda::forward));
  m.impl("_group_norm_modulate_backward_cuda", TORCH_BOX(&strucfast::cuda::backward));
}
