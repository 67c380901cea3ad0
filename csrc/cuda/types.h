#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "common/half.h"

// What the kernels' callers see: no device code, so that a plain C++ compiler reads it too.
namespace strucfast::cuda {

// The type that sums and per-element arithmetic use.
template <typename T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <typename T>
using Compute = typename ComputeType<T>::type;

struct Shape {
  int64_t batch, channels, spatial;
  bool channels_last;
  int64_t size() const { return batch * channels * spatial; }
};

// A parameter tensor (scale, shift, weight, bias): of x's type or float32, null when absent. Per channel it is read at
// sample * stride + channel (a slice of a bank of scales needs no copy), per pixel where x is read.
struct Operand {
  const void* data = nullptr;
  int64_t stride = 0;
  bool float32 = true;
  bool per_pixel = false;
};

// A parameter's gradient, in the parameter's type; null when nobody asked for it.
struct Gradient {
  void* data = nullptr;
  bool float32 = true;
  bool per_pixel = false;
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Whether every row of a parameter can be read in vectors of V.
template <int V>
bool vectors_fit(const Operand& operand) {
  return aligned_16(operand.data) && (operand.per_pixel || operand.stride % V == 0);
}

}  // namespace strucfast::cuda
