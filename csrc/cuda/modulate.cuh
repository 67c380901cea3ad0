#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/types.h"

// y = scale x + shift on x of N samples, C channels and S pixels: contiguous (N,C,S) or channels-last (N,S,C).
namespace strucfast::cuda {

// One pixel: a channel's parameter is that pixel's own, and only its stride matters.
inline void simplify_single_pixel(Shape* shape, Operand* operand) {
  if (shape->spatial != 1) return;
  shape->channels_last = true;
  operand->per_pixel = operand->per_pixel || operand->stride == shape->channels || shape->batch == 1;
}

// With nothing to sum, x is one long row.
inline Shape flatten_if_elementwise(Shape shape, bool scale_per_pixel, bool shift_per_pixel) {
  return scale_per_pixel && shift_per_pixel ? Shape{1, 1, shape.size(), false} : shape;
}

// T: float, double, BFloat16, Float16.
template <typename T>
cudaError_t modulate_forward(const T* x, Operand scale, Operand shift, T* y, Shape shape, cudaStream_t stream);

// Null dx and null gradients are left out. `workspace` holds modulate_workspace(shape) compute-type values.
template <typename T>
cudaError_t modulate_backward(const T* grad, const T* x, Operand scale, T* dx, Gradient dscale, Gradient dshift,
                              Shape shape, Compute<T>* workspace, cudaStream_t stream);

template <typename T>
int64_t modulate_workspace(Shape shape, bool scale_per_pixel, bool shift_per_pixel);

}  // namespace strucfast::cuda
