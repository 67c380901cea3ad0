#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "common/activation.h"
#include "common/str_tfm.h"

// All d per-variable MLPs and their scale map: u (N,d,k) -> scale, shift (N,d,C). T: float, double.
namespace strucfast::cuda {

constexpr int kMaxLayers = 16;

template <typename T>
struct StrTfmLayers {
  // weights[l] (d, widths[l + 1], widths[l]), biases[l] (d, widths[l + 1]).
  const T* weights[kMaxLayers];
  const T* biases[kMaxLayers];
  int widths[kMaxLayers + 1];
  int count;
  int64_t samples, variables;
  Activation activation;
  ScaleMap scale_map;

  int64_t hidden_width() const {
    int64_t sum = 0;
    for (int l = 1; l < count; ++l) sum += widths[l];
    return sum;
  }
};

// `saved` (d, N, hidden_width()): the hidden pre-activations, layer after layer; null when not wanted.
template <typename T>
cudaError_t str_tfm_forward(const StrTfmLayers<T>& layers, const T* u, const int64_t (&u_strides)[3], T* scale,
                            T* shift, T* saved, cudaStream_t stream);

// du (N,d,k) may be null; dweights and dbiases are written if `parameters` is set. All but the weights are dense.
// `workspace` holds d N (hidden_width() + 2C) values.
template <typename T>
struct StrTfmGradients {
  const T* grad_scale;
  const T* grad_shift;
  const T* u;
  const T* scale;
  const T* saved;
  T* du;
  T* dweights[kMaxLayers];
  T* dbiases[kMaxLayers];
  bool parameters;
  T* workspace;
};

template <typename T>
cudaError_t str_tfm_backward(const StrTfmLayers<T>& layers, const StrTfmGradients<T>& gradients, cudaStream_t stream);

// The widest layer that fits the current device's shared memory.
template <typename T>
int64_t str_tfm_widest();

}  // namespace strucfast::cuda
