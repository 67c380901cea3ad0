#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "cuda/types.h"

// tests/cuda builds these files a second time, against its emulator and for CPU tensors.
#if defined(STRUCFAST_CUDA_EMULATOR)
#define STRUCFAST_CUDA_KEY CPU
#else
#define STRUCFAST_CUDA_KEY CUDA
#endif

namespace strucfast::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check(cudaError_t error, const char* op) {
#if defined(STRUCFAST_CUDA_EMULATOR)
  STD_TORCH_CHECK(error == cudaSuccess, op, ": ", emulator::state().error, " (emulated CUDA error ", error, ")");
#else
  STD_TORCH_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
#endif
}

// Makes x's device the current one for as long as it lives, and knows the caller's stream there.
class Device {
#if defined(STRUCFAST_CUDA_EMULATOR)
 public:
  explicit Device(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
#else
 public:
  explicit Device(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
#endif
};

inline bool is_channels_last(const Tensor& x) {
  const int64_t rank = x.dim();
  if (rank < 3 || x.stride(1) != 1) return false;
  int64_t expected = x.size(1);
  for (int64_t d = rank - 1; d >= 2; --d) {
    // The stride of an axis of length 1 says nothing.
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return x.size(0) == 1 || x.stride(0) == expected;
}

inline Shape shape_of(const Tensor& x, bool channels_last) {
  int64_t spatial = 1;
  for (int64_t d = 2; d < x.dim(); ++d) spatial *= x.size(d);
  return {x.size(0), x.size(1), spatial, channels_last};
}

// x itself when its layout is native, else a contiguous copy.
struct Native {
  Tensor tensor;
  bool channels_last;
  explicit Native(const Tensor& x) : tensor(x), channels_last(false) {
    if (x.is_contiguous()) return;
    channels_last = is_channels_last(x);
    if (!channels_last) tensor = torch::stable::contiguous(x);
  }
};

// An empty tensor of x's shape in the given layout.
inline Tensor empty_in_layout(const Tensor& x, bool channels_last, ScalarType type) {
  if (!channels_last) return torch::stable::new_empty(x, x.sizes(), type);
  const int64_t rank = x.dim();
  std::vector<int64_t> sizes(rank), strides(rank);
  for (int64_t d = 0; d < rank; ++d) sizes[d] = x.size(d);
  int64_t stride = sizes[1];
  strides[1] = 1;
  for (int64_t d = rank - 1; d >= 2; --d) {
    strides[d] = stride;
    stride *= sizes[d];
  }
  strides[0] = stride;
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  int32_t device, index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes.data(), strides.data(), dtype, device, index, &handle));
  return Tensor(handle);
}

// `other` (grad, a per-pixel scale) in x's layout; a copy only when it lies differently.
inline Tensor in_layout(const Tensor& other, bool channels_last) {
  if (!channels_last) return other.is_contiguous() ? other : torch::stable::contiguous(other);
  if (is_channels_last(other)) return other;
  Tensor copy = empty_in_layout(other, true, other.scalar_type());
  torch::stable::copy_(copy, other);
  return copy;
}

// A parameter for the kernels; keeps what it points to alive.
struct Parameter {
  std::optional<Tensor> tensor;
  Operand operand;
  Parameter(const std::optional<Tensor>& parameter, const Tensor& x, bool channels_last) : tensor(parameter) {
    if (!parameter.has_value()) return;
    operand.per_pixel = parameter->dim() > 2;
    const int64_t last = parameter->dim() - 1;
    if (operand.per_pixel) {
      tensor = in_layout(*parameter, channels_last);
    } else if (parameter->size(last) != 1 && parameter->stride(last) != 1) {
      tensor = torch::stable::contiguous(*parameter);
    }
    operand.data = tensor->data_ptr();
    operand.stride = last == 1 ? tensor->stride(0) : 0;
    operand.float32 = parameter->scalar_type() == ScalarType::Float;
    STD_TORCH_CHECK(operand.float32 || parameter->scalar_type() == x.scalar_type(),
                    "strucfast: a parameter must be float32 or have the dtype of x");
  }
};

inline Tensor nothing(const Tensor& like, ScalarType type) { return torch::stable::new_empty(like, {0}, type); }

// The gradient tensor of an (N,C) or per-pixel parameter, in the layout that the kernels write.
inline Tensor empty_gradient(const Tensor& x, ScalarType type, bool per_pixel, bool channels_last) {
  if (per_pixel) return empty_in_layout(x, channels_last, type);
  return torch::stable::new_empty(x, {x.size(0), x.size(1)}, type);
}

inline Gradient gradient_of(const Tensor& tensor, bool asked, bool per_pixel) {
  return {asked ? tensor.data_ptr() : nullptr, tensor.scalar_type() == ScalarType::Float, per_pixel};
}

template <typename T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

constexpr ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f with a value of the element type.
template <typename F>
void dispatch(ScalarType type, const char* op, F f) {
  switch (type) {
    case ScalarType::Float: return f(float());
    case ScalarType::Double: return f(double());
    case ScalarType::BFloat16: return f(BFloat16());
    case ScalarType::Half: return f(Float16());
    default: STD_TORCH_CHECK(false, op, ": x must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace strucfast::cuda
