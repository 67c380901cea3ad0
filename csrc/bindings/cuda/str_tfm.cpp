#include "cuda/str_tfm.cuh"

#include <tuple>
#include <vector>

#include "common.h"

namespace strucfast::cuda {
namespace {

Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

// The layers in the kernels' form; keeps contiguous weights and biases alive.
template <typename T>
struct Layers {
  StrTfmLayers<T> layers{};
  std::vector<Tensor> kept;

  Layers(const Tensor& u, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t activation,
         int64_t scale_map) {
    STD_TORCH_CHECK(weights.size() <= kMaxLayers, "strucfast.str_tfm: the cuda backend takes at most ", kMaxLayers,
                    " layers, got ", weights.size(), "; use_backend(\"reference\") takes more");
    layers.count = static_cast<int>(weights.size());
    layers.samples = u.size(0);
    layers.variables = u.size(1);
    layers.activation = static_cast<Activation>(activation);
    layers.scale_map = static_cast<ScaleMap>(scale_map);
    layers.widths[0] = width_of(u.size(2));
    for (size_t l = 0; l < weights.size(); ++l) {
      layers.widths[l + 1] = width_of(weights[l].size(1));
      kept.push_back(dense(weights[l]));
      layers.weights[l] = pointer<T>(kept.back());
      kept.push_back(dense(biases[l]));
      layers.biases[l] = pointer<T>(kept.back());
    }
  }
  static int width_of(int64_t width) {
    const int64_t widest = str_tfm_widest<T>();
    STD_TORCH_CHECK(width <= widest, "strucfast.str_tfm: the cuda backend takes layers of at most ", widest,
                    " features on this device, got ", width, "; use_backend(\"reference\") takes wider ones");
    return static_cast<int>(width);
  }
};

template <typename F>
void dispatch_float(const Tensor& u, const char* op, F f) {
  if (u.scalar_type() == ScalarType::Float) return f(float());
  STD_TORCH_CHECK(u.scalar_type() == ScalarType::Double, op, ": u must be float32 or float64");
  f(double());
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& u, std::vector<Tensor> weights, std::vector<Tensor> biases,
                                           int64_t activation, int64_t scale_map, bool save) {
  const Device device(u);
  const int64_t samples = u.size(0), variables = u.size(1), channels = weights.back().size(1) / 2;
  Tensor scale = torch::stable::new_empty(u, {samples, variables, channels});
  Tensor shift = torch::stable::new_empty(u, {samples, variables, channels});
  Tensor saved = nothing(u, u.scalar_type());
  dispatch_float(u, "_str_tfm_cuda", [&](auto element) {
    using T = decltype(element);
    const Layers<T> l(u, weights, biases, activation, scale_map);
    if (save) saved = torch::stable::new_empty(u, {variables, samples, l.layers.hidden_width()});
    check(
        str_tfm_forward<T>(l.layers, pointer<T>(u), {u.stride(0), u.stride(1), u.stride(2)}, pointer<T>(scale),
                           pointer<T>(shift), save && saved.numel() > 0 ? pointer<T>(saved) : nullptr, device.stream()),
        "_str_tfm_cuda");
  });
  return {scale, shift, saved};
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> backward(
    const Tensor& grad_scale_in, const Tensor& grad_shift_in, const Tensor& u_in, std::vector<Tensor> weights,
    std::vector<Tensor> biases, const Tensor& scale_in, const Tensor& saved_in, int64_t activation, int64_t scale_map,
    int64_t mask) {
  const Device device(u_in);
  const Tensor u = dense(u_in), grad_scale = dense(grad_scale_in), grad_shift = dense(grad_shift_in);
  const Tensor scale = dense(scale_in), saved = dense(saved_in);
  const bool want_u = mask & 1, want_parameters = mask & 2, empty = u.size(0) == 0 || u.size(1) == 0;
  Tensor du = want_u ? torch::stable::new_empty(u, u.sizes()) : nothing(u, u.scalar_type());
  std::vector<Tensor> dweights, dbiases;
  for (size_t l = 0; l < weights.size(); ++l) {
    for (const bool is_weight : {true, false}) {
      const Tensor& like = is_weight ? weights[l] : biases[l];
      Tensor gradient = want_parameters ? torch::stable::new_empty(u, like.sizes()) : nothing(u, u.scalar_type());
      // No kernel runs, and a sum over nothing is zero.
      if (want_parameters && empty) torch::stable::zero_(gradient);
      (is_weight ? dweights : dbiases).push_back(gradient);
    }
  }
  if (empty || (mask & 3) == 0) return {du, dweights, dbiases};
  dispatch_float(u, "_str_tfm_backward_cuda", [&](auto element) {
    using T = decltype(element);
    const Layers<T> l(u, weights, biases, activation, scale_map);
    const int64_t width = l.layers.hidden_width() + weights.back().size(1);
    const Tensor workspace = torch::stable::new_empty(u, {u.size(0) * u.size(1) * width});
    StrTfmGradients<T> g{};
    g.grad_scale = pointer<T>(grad_scale);
    g.grad_shift = pointer<T>(grad_shift);
    g.u = pointer<T>(u);
    g.scale = pointer<T>(scale);
    g.saved = pointer<T>(saved);
    g.du = want_u ? pointer<T>(du) : nullptr;
    for (size_t i = 0; i < weights.size() && want_parameters; ++i) {
      g.dweights[i] = pointer<T>(dweights[i]);
      g.dbiases[i] = pointer<T>(dbiases[i]);
    }
    g.parameters = want_parameters;
    g.workspace = pointer<T>(workspace);
    check(str_tfm_backward<T>(l.layers, g, device.stream()), "_str_tfm_backward_cuda");
  });
  return {du, dweights, dbiases};
}

}  // namespace
}  // namespace strucfast::cuda

STABLE_TORCH_LIBRARY_IMPL(strucfast, STRUCFAST_CUDA_KEY, m) {
  m.impl("_str_tfm_cuda", TORCH_BOX(&strucfast::cuda::forward));
  m.impl("_str_tfm_backward_cuda", TORCH_BOX(&strucfast::cuda::backward));
}
