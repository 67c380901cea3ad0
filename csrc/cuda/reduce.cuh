#pragma once
#include "cuda/device.h"

// Sums over a warp, a team and a block, in an order that depends on the launch shape only: the same bits on every run.
namespace strucfast::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// Sum over the `width` (a power of two) neighbouring lanes that share lane / width.
template <typename A>
__device__ __forceinline__ A warp_sum(A value, int width = 32) {
  for (int offset = width / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// Sum over the lanes that agree in lane % stride (stride a power of two).
template <typename A>
__device__ __forceinline__ A warp_sum_strided(A value, int stride) {
  for (int offset = 16; offset >= stride; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// Sum over a one-dimensional block of whole warps; every thread gets it. `scratch` holds 33 values.
template <typename A>
__device__ __forceinline__ A block_sum(A value, A* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_sum(value);
  if (warps == 1) return value;
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  if (warp == 0) {
    const A total = warp_sum(lane < warps ? scratch[lane] : A(0));
    if (lane == 0) scratch[32] = total;
  }
  __syncthreads();
  const A total = scratch[32];
  // The next sum may reuse the scratch.
  __syncthreads();
  return total;
}

}  // namespace strucfast::cuda
