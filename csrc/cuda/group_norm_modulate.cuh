#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/activation.cuh"
#include "cuda/modulate.cuh"
#include "cuda/vector_io.cuh"

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
cudaError_t group_norm_modulate_backward(GroupNormBackward<T> tensors, GroupNormParameters parameters, cudaStream_t stream);

// One channel's numbers, read from shared memory in one or two 16-byte loads.
template <typename A>
struct alignas(16) ChannelTerms {
  A slope, offset, scale, shift;
};

// A group as its kernel sees it: `vectors` vectors of V elements.
template <int V, bool ChannelsLast>
struct Group {
  int64_t sample, first_channel, base, vectors;
  const Shape& shape;
  const Divider& line;

  __device__ __forceinline__ Group(int64_t index, int64_t groups, const Shape& shape_, const Divider& line_)
      : shape(shape_), line(line_) {
    const int64_t channels = shape.channels / groups;
    sample = index / groups;
    first_channel = (index - sample * groups) * channels;
    base = sample * shape.channels * shape.spatial + (ChannelsLast ? first_channel : first_channel * shape.spatial);
    vectors = channels * shape.spatial / V;
  }
  // The place in x of vector i, and the channel (within the group) of its first element.
  __device__ __forceinline__ int64_t at(int64_t i, int* channel) const {
    const auto row = static_cast<int64_t>(line.quotient(i));
    if constexpr (ChannelsLast) {
      const int64_t inside = i - row * static_cast<int64_t>(line.divisor);
      *channel = static_cast<int>(inside * V);
      return base + row * shape.channels + inside * V;
    } else {
      *channel = static_cast<int>(row);
      return base + i * V;
    }
  }
};

// Vectors of a channel (contiguous) or of a pixel's share of the group (channels-last).
template <int V>
Divider group_line(const Shape& shape, int64_t groups) {
  return Divider((shape.channels_last ? shape.channels / groups : shape.spatial) / V);
}

}  // namespace strucfast::cuda
