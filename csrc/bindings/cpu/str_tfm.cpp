#include "../../cpu/str_tfm.h"

#include <torch/headeronly/core/Dispatch_v2.h>

#include <tuple>

#include "common.h"

namespace {

using strucfast::bindings::empty;
using strucfast::bindings::for_ranges;
using strucfast::bindings::no_tensor;
using strucfast::bindings::num_slots;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Below this many multiplications a second thread costs more than it brings (libgomp barriers under load).
constexpr int64_t kWorkPerThread = 1 << 19;

std::vector<int64_t> layer_widths(const Tensor& u, const std::vector<Tensor>& weights) {
  std::vector<int64_t> widths{u.size(2)};
  for (const Tensor& weight : weights) widths.push_back(weight.size(1));
  return widths;
}

strucfast::StrTfmShape shape_of(const Tensor& u, const std::vector<int64_t>& widths) {
  return {u.size(0), u.size(1), static_cast<int64_t>(widths.size()) - 1, widths.data()};
}

std::vector<Tensor> all_contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> out;
  out.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    out.push_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
  }
  return out;
}

template <typename T>
std::vector<const T*> pointers(const std::vector<Tensor>& tensors) {
  std::vector<const T*> out;
  out.reserve(tensors.size());
  for (const Tensor& tensor : tensors) out.push_back(static_cast<const T*>(tensor.const_data_ptr()));
  return out;
}

template <typename T>
std::vector<T*> mutable_pointers(const std::vector<Tensor>& tensors) {
  std::vector<T*> out;
  out.reserve(tensors.size());
  for (const Tensor& tensor : tensors) out.push_back(static_cast<T*>(tensor.mutable_data_ptr()));
  return out;
}

// The rows of the scratch buffers start at a cache line.
int64_t cache_lines(int64_t elements) { return (elements + 15) / 16 * 16; }

template <typename T>
void run_forward(const Tensor& u, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                 const strucfast::StrTfmShape& shape, int64_t activation, int64_t scale_map, const Tensor& scale,
                 const Tensor& shift, const Tensor& saved, bool save) {
  const std::vector<const T*> weight_data = pointers<T>(weights);
  const std::vector<const T*> bias_data = pointers<T>(biases);
  const strucfast::StrTfmForward<T> op{shape,
                                       static_cast<int>(activation),
                                       static_cast<int>(scale_map),
                                       static_cast<const T*>(u.const_data_ptr()),
                                       {u.stride(0), u.stride(1), u.stride(2)},
                                       weight_data.data(),
                                       bias_data.data(),
                                       static_cast<T*>(scale.mutable_data_ptr()),
                                       static_cast<T*>(shift.mutable_data_ptr()),
                                       save ? static_cast<T*>(saved.mutable_data_ptr()) : nullptr};
  const int64_t units = shape.num_variables * shape.num_tiles();
  const int64_t slots = num_slots(units, shape.multiplications(), kWorkPerThread);
  const int64_t scratch_size = cache_lines(strucfast::str_tfm_forward_scratch(shape));
  const Tensor scratch = empty({slots * scratch_size}, u.scalar_type());
  // A step packs the weights of the variables it touches, so it is a whole variable where that keeps all slots busy.
  const bool whole = shape.num_variables % slots == 0 || shape.num_variables >= 2 * slots;
  const int64_t step = whole ? shape.num_tiles() : std::max<int64_t>(1, units / (2 * slots));
  for_ranges(units, step, slots, static_cast<T*>(scratch.mutable_data_ptr()), scratch_size,
             [&](int64_t begin, int64_t end, T* memory) { strucfast::str_tfm_forward(op, begin, end, memory); });
}

std::tuple<Tensor, Tensor, Tensor> str_tfm(const Tensor& u, std::vector<Tensor> weights, std::vector<Tensor> biases,
                                           int64_t activation, int64_t scale_map, bool save) {
  weights = all_contiguous(weights);
  biases = all_contiguous(biases);
  const std::vector<int64_t> widths = layer_widths(u, weights);
  const strucfast::StrTfmShape shape = shape_of(u, widths);
  const int64_t n = shape.num_samples;
  const int64_t d = shape.num_variables;
  const ScalarType dtype = u.scalar_type();
  const Tensor scale = empty({n, d, widths.back() / 2}, dtype);
  const Tensor shift = empty({n, d, widths.back() / 2}, dtype);
  const Tensor saved = save ? empty({d, n, shape.hidden_width()}, dtype) : no_tensor(dtype);
  if (n > 0 && d > 0) {
    THO_DISPATCH_V2(u.scalar_type(), "str_tfm", AT_WRAP([&] {
      run_forward<scalar_t>(u, weights, biases, shape, activation, scale_map, scale, shift, saved, save);
    }), ScalarType::Float, ScalarType::Double);
  }
  return {scale, shift, saved};
}

template <typename T>
void run_backward(const Tensor& grad_scale, const Tensor& grad_shift, const Tensor& u,
                  const std::vector<Tensor>& weights, const Tensor& scale, const Tensor& saved,
                  const strucfast::StrTfmShape& shape, int64_t activation, int64_t scale_map, const Tensor& du,
                  const std::vector<Tensor>& dweights, const std::vector<Tensor>& dbiases, int64_t mask) {
  const std::vector<const T*> weight_data = pointers<T>(weights);
  const std::vector<T*> dweight_data = mutable_pointers<T>(dweights);
  const std::vector<T*> dbias_data = mutable_pointers<T>(dbiases);
  const bool parameters = (mask & 2) != 0;
  const int64_t chunks = strucfast::str_tfm_num_chunks(shape);
  const int64_t units = shape.num_variables * chunks;
  const int64_t slots = num_slots(units, 2 * shape.multiplications(), kWorkPerThread);
  const int64_t scratch_size = cache_lines(strucfast::str_tfm_backward_scratch(shape));
  const int64_t partials = parameters ? (chunks - 1) * shape.num_variables * shape.num_parameters() : 0;
  const Tensor memory = empty({slots * scratch_size + partials}, u.scalar_type());
  T* scratch = static_cast<T*>(memory.mutable_data_ptr());
  const strucfast::StrTfmBackward<T> op{shape,
                                        static_cast<int>(activation),
                                        static_cast<int>(scale_map),
                                        static_cast<const T*>(grad_scale.const_data_ptr()),
                                        {grad_scale.stride(0), grad_scale.stride(1)},
                                        static_cast<const T*>(grad_shift.const_data_ptr()),
                                        {grad_shift.stride(0), grad_shift.stride(1)},
                                        static_cast<const T*>(u.const_data_ptr()),
                                        {u.stride(0), u.stride(1), u.stride(2)},
                                        weight_data.data(),
                                        static_cast<const T*>(scale.const_data_ptr()),
                                        static_cast<const T*>(saved.const_data_ptr()),
                                        (mask & 1) != 0 ? static_cast<T*>(du.mutable_data_ptr()) : nullptr,
                                        parameters ? dweight_data.data() : nullptr,
                                        parameters ? dbias_data.data() : nullptr,
                                        scratch + slots * scratch_size};
  for_ranges(units, 1, slots, scratch, scratch_size,
             [&](int64_t begin, int64_t end, T* own) { strucfast::str_tfm_backward(op, begin, end, own); });
  if (partials > 0) {
    for_ranges(shape.num_variables, 1, num_slots(shape.num_variables, partials, kWorkPerThread), scratch, scratch_size,
               [&](int64_t begin, int64_t end, T*) { strucfast::str_tfm_reduce(op, begin, end); });
  }
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> str_tfm_backward(
    Tensor grad_scale, Tensor grad_shift, const Tensor& u, std::vector<Tensor> weights, std::vector<Tensor>,
    Tensor scale, Tensor saved, int64_t activation, int64_t scale_map, int64_t mask) {
  weights = all_contiguous(weights);
  if (grad_scale.stride(2) != 1) grad_scale = torch::stable::contiguous(grad_scale);
  if (grad_shift.stride(2) != 1) grad_shift = torch::stable::contiguous(grad_shift);
  if (!scale.is_contiguous()) scale = torch::stable::contiguous(scale);
  if (!saved.is_contiguous()) saved = torch::stable::contiguous(saved);
  const std::vector<int64_t> widths = layer_widths(u, weights);
  const strucfast::StrTfmShape shape = shape_of(u, widths);
  const bool nothing = shape.num_samples == 0 || shape.num_variables == 0;
  const ScalarType dtype = u.scalar_type();
  const Tensor du = (mask & 1) != 0 ? empty({u.size(0), u.size(1), u.size(2)}, dtype) : no_tensor(dtype);
  std::vector<Tensor> dweights;
  std::vector<Tensor> dbiases;
  dweights.reserve(weights.size());
  dbiases.reserve(weights.size());
  for (size_t l = 0; l < weights.size(); ++l) {
    const bool wanted = (mask & 2) != 0;
    dweights.push_back(wanted ? empty({shape.num_variables, widths[l + 1], widths[l]}, dtype) : no_tensor(dtype));
    dbiases.push_back(wanted ? empty({shape.num_variables, widths[l + 1]}, dtype) : no_tensor(dtype));
    if (wanted && nothing) {
      torch::stable::zero_(dweights.back());
      torch::stable::zero_(dbiases.back());
    }
  }
  if (!nothing && (mask & 3) != 0) {
    THO_DISPATCH_V2(u.scalar_type(), "str_tfm_backward", AT_WRAP([&] {
      run_backward<scalar_t>(grad_scale, grad_shift, u, weights, scale, saved, shape, activation, scale_map, du,
                             dweights, dbiases, mask);
    }), ScalarType::Float, ScalarType::Double);
  }
  return {du, dweights, dbiases};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(strucfast, CPU, m) {
  m.impl("_str_tfm_cpp", TORCH_BOX(&str_tfm));
  m.impl("_str_tfm_backward_cpp", TORCH_BOX(&str_tfm_backward));
}
