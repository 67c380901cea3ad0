#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "common/activation.h"
#include "cuda/types.h"

// y = scale act(weight xhat + bias) + shift, xhat normalised over the (C / groups) * S values of a group.
namespace strucfast::cuda {

struct GroupNormParameters {
  Operand weight, bias, scale, shift;
  Shape shape;
  int64_t groups;
  Activation activation;
};

// mean and rstd: (N, groups).
template <typename T>
cudaError_t group_norm_modulate_forward(const T* x, GroupNormParameters parameters, double eps, T* y, Compute<T>* mean,
                                        Compute<T>* rstd, cudaStream_t stream);

// Null outputs are left out. `workspace` holds 4 N C compute-type values. dweight and dbias are (C,).
template <typename T>
struct GroupNormBackward {
  const T* grad;
  const T* x;
  const Compute<T>* mean;
  const Compute<T>* rstd;
  T* dx;
  Gradient dweight, dbias, dscale, dshift;
  Compute<T>* workspace;
};

template <typename T>
cudaError_t group_norm_modulate_backward(GroupNormBackward<T> tensors, GroupNormParameters parameters,
                                         cudaStream_t stream);

}  // namespace strucfast::cuda
