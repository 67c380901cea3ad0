#include "cuda/modulate.cuh"

#include "cuda/vector_io.cuh"

namespace strucfast::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kVectors = 4;

// Sample and channel of element `at` of x, and of its successors.
template <bool ChannelsLast>
struct Place {
  int64_t sample, channel, pixel;

  __device__ __forceinline__ Place(int64_t at, const Shape& shape, const Divider& spatial, const Divider& channels) {
    const Divider& inner = ChannelsLast ? channels : spatial;
    const Divider& outer = ChannelsLast ? spatial : channels;
    const int64_t line = inner.quotient(at);
    sample = outer.quotient(line);
    if constexpr (ChannelsLast) {
      channel = at - line * shape.channels;
      pixel = line - sample * shape.spatial;
    } else {
      channel = line - sample * shape.channels;
      pixel = at - line * shape.spatial;
    }
  }
  __device__ __forceinline__ void advance(const Shape& shape) {
    int64_t& inner = ChannelsLast ? channel : pixel;
    int64_t& outer = ChannelsLast ? pixel : channel;
    if (++inner < (ChannelsLast ? shape.channels : shape.spatial)) return;
    inner = 0;
    if (++outer < (ChannelsLast ? shape.spatial : shape.channels)) return;
    outer = 0;
    ++sample;
  }
};

template <typename T, int V, bool ChannelsLast>
__device__ __forceinline__ void load_parameters(const Operand& operand, int64_t at, bool whole, const Shape& shape,
                                                Place<ChannelsLast> place, Compute<T> (&to)[V]) {
  if (operand.per_pixel) {
    load_operands<T, V>(operand, at, to);
  } else if (whole && ChannelsLast) {
    load_operands<T, V>(operand, place.sample * operand.stride + place.channel, to);
  } else if (whole) {
    const Compute<T> value = load_operand<T>(operand, place.sample * operand.stride + place.channel);
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = value;
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      to[j] = load_operand<T>(operand, place.sample * operand.stride + place.channel);
      // What follows the last element may lie beyond the last parameter; it is not read.
      place.advance(shape);
    }
  }
}

// `whole`: every vector lies inside one channel (contiguous) or one pixel (channels-last).
template <typename T, int V, bool ChannelsLast>
__global__ void __launch_bounds__(kThreads, 1)
    modulate_forward_kernel(const T* __restrict__ x, Operand scale, Operand shift, T* __restrict__ y, Shape shape,
                            Divider spatial, Divider channels, int64_t vectors, bool whole) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kVectors) + threadIdx.x;
  Pack<T, V> packs[kVectors];
  // All loads leave before the first use.
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int64_t vector = first + k * kThreads;
    if (vector < vectors) packs[k] = load_pack<V>(x + vector * V);
  }
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int64_t vector = first + k * kThreads;
    if (vector >= vectors) break;
    const int64_t at = vector * V;
    const Place<ChannelsLast> place(at, shape, spatial, channels);
    Compute<T> values[V], a[V], b[V];
    unpack<V>(packs[k], values);
    load_parameters<T, V, ChannelsLast>(scale, at, whole, shape, place, a);
    load_parameters<T, V, ChannelsLast>(shift, at, whole, shape, place, b);
#pragma unroll
    for (int j = 0; j < V; ++j) values[j] = a[j] * values[j] + b[j];
    store_values<V>(y + at, values);
  }
}

template <typename T, int V>
cudaError_t run_forward(const T* x, Operand scale, Operand shift, T* y, Shape shape, cudaStream_t stream) {
  const int64_t vectors = shape.size() / V;
  const bool whole = (shape.channels_last ? shape.channels : shape.spatial) % V == 0;
  const auto grid = static_cast<unsigned>(divide_up(vectors, kThreads * kVectors));
  const auto kernel = shape.channels_last ? modulate_forward_kernel<T, V, true> : modulate_forward_kernel<T, V, false>;
  return launch(kernel, grid, dim3(kThreads), 0, stream, x, scale, shift, y, shape,
                Divider(shape.spatial, shape.size()), Divider(shape.channels, shape.size()), vectors, whole);
}

}  // namespace

template <typename T>
cudaError_t modulate_forward(const T* x, Operand scale, Operand shift, T* y, Shape shape, cudaStream_t stream) {
  if (shape.size() == 0) return cudaSuccess;
  simplify_single_pixel(&shape, &scale);
  simplify_single_pixel(&shape, &shift);
  shape = flatten_if_elementwise(shape, scale.per_pixel, shift.per_pixel);
  constexpr int V = kFullVector<T>;
  const bool whole = (shape.channels_last ? shape.channels : shape.spatial) % V == 0;
  bool vectors = shape.size() % V == 0 && aligned_16(x) && aligned_16(y);
  // Inside a channel, or element by element, a per-channel parameter is read one by one.
  for (const Operand& operand : {scale, shift}) {
    vectors = vectors && (vectors_fit<V>(operand) || (!operand.per_pixel && !(shape.channels_last && whole)));
  }
  if (vectors) return run_forward<T, V>(x, scale, shift, y, shape, stream);
  return run_forward<T, 1>(x, scale, shift, y, shape, stream);
}

template cudaError_t modulate_forward<float>(const float*, Operand, Operand, float*, Shape, cudaStream_t);
template cudaError_t modulate_forward<double>(const double*, Operand, Operand, double*, Shape, cudaStream_t);
template cudaError_t modulate_forward<BFloat16>(const BFloat16*, Operand, Operand, BFloat16*, Shape, cudaStream_t);
template cudaError_t modulate_forward<Float16>(const Float16*, Operand, Operand, Float16*, Shape, cudaStream_t);

}  // namespace strucfast::cuda
