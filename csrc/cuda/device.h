#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/types.h"

// Everything that needs the CUDA compiler, in one place: the kernels build on these functions alone. Compiled by a
// plain C++ compiler the kernels run on the emulator of tests/cuda/emulator, which brings its own cuda_runtime.h.
namespace strucfast::cuda {

__host__ __device__ __forceinline__ float to_compute(float value) { return value; }
__host__ __device__ __forceinline__ double to_compute(double value) { return value; }
__host__ __device__ __forceinline__ void from_compute(float value, float* to) { *to = value; }
__host__ __device__ __forceinline__ void from_compute(double value, double* to) { *to = value; }
__host__ __device__ __forceinline__ void from_compute(double value, float* to) { *to = static_cast<float>(value); }
__host__ __device__ __forceinline__ void from_compute(float value, double* to) { *to = static_cast<double>(value); }

#if defined(__CUDACC__)

__device__ __forceinline__ float to_compute(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float to_compute(Float16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}
__device__ __forceinline__ void from_compute(float value, BFloat16* to) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(value));
}
__device__ __forceinline__ void from_compute(float value, Float16* to) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(value));
}

template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

// 16 bytes from global straight into shared memory, without a register in between; wait_for_copies() ends them all.
__device__ __forceinline__ void copy_16_to_shared(void* shared, const void* global) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
__device__ __forceinline__ uint64_t multiply_high(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
__device__ __forceinline__ float add_down(float a, float b) { return __fadd_rd(a, b); }
__device__ __forceinline__ float reciprocal_root(float value) { return 1.0f / sqrtf(value); }
__device__ __forceinline__ double reciprocal_root(double value) { return 1.0 / sqrt(value); }

template <typename... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), unsigned grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  // Up to 48 KB come without asking.
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

// Shared memory one block may ask for on the current device.
inline size_t shared_memory_limit() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 48 * 1024;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 48 * 1024;
  return static_cast<size_t>(bytes);
}

#else

inline float to_compute(BFloat16 value) { return load(value); }
inline float to_compute(Float16 value) { return load(value); }
inline void from_compute(float value, BFloat16* to) { store(to, value); }
inline void from_compute(float value, Float16* to) { store(to, value); }

template <typename T>
inline T* dynamic_shared() {
  return reinterpret_cast<T*>(emulator::dynamic_shared_bytes());
}
inline void copy_16_to_shared(void* shared, const void* global) { emulator::copy_16(shared, global); }
inline void wait_for_copies() { emulator::finish_copies(); }
inline uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint32_t>((uint64_t(a) * b) >> 32); }
inline uint64_t multiply_high(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(((unsigned __int128)a * b) >> 64);
}
// The greatest float that is not above a + b.
inline float add_down(float a, float b) {
  const double sum = static_cast<double>(a) + b;
  const auto rounded = static_cast<float>(sum);
  return rounded > sum ? nextafterf(rounded, -INFINITY) : rounded;
}
inline float reciprocal_root(float value) { return 1.0f / sqrtf(value); }
inline double reciprocal_root(double value) { return 1.0 / sqrt(value); }

template <typename... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), unsigned grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   Arguments... arguments) {
  return emulator::run([=] { kernel(arguments...); }, grid, block, shared_bytes);
}

inline size_t shared_memory_limit() { return emulator::shared_memory_limit(); }

#endif

// n / divisor by a multiplication, for n below `limit`; a 64-bit division would be a call with a stack of its own.
struct Divider {
  uint64_t divisor, magic;
  uint32_t shift;
  bool small;

  explicit Divider(int64_t value, int64_t limit)
      : divisor(static_cast<uint64_t>(value)), magic(0), shift(0), small(value < (1ll << 31) && limit <= (1ll << 31)) {
    while (shift < 63 && (1ull << shift) < divisor) ++shift;
    if (small) {
      // Rounded up to 33 bits, of which the highest is the `+ n` below.
      magic = ((1ull << 32) * ((1ull << shift) - divisor)) / divisor + 1;
    } else if (divisor > 1) {
      // ceil(2^(62 + shift) / divisor), right for n < 2^62.
      shift = shift < 2 ? 2 : shift;
      magic = static_cast<uint64_t>((((unsigned __int128)1 << (62 + shift)) + divisor - 1) / divisor);
      shift -= 2;
    }
  }
  __device__ __forceinline__ int64_t quotient(int64_t n) const {
    if (small) {
      const auto low = static_cast<uint32_t>(n);
      return (multiply_high(low, static_cast<uint32_t>(magic)) + low) >> shift;
    }
    if (divisor == 1) return n;
    return static_cast<int64_t>(multiply_high(static_cast<uint64_t>(n), magic) >> shift);
  }
};

}  // namespace strucfast::cuda
