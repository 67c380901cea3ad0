#pragma once
#include "cuda/device.h"

// Vectors of V elements between memory and compute-type registers.
namespace strucfast::cuda {

// Elements of a 16-byte access; double, which nobody races, is spared the second set of kernels.
template <typename T>
constexpr int kFullVector = sizeof(T) == 8 ? 1 : 16 / sizeof(T);

template <typename T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
  T items[V];
};

template <int V, typename T>
__device__ __forceinline__ Pack<T, V> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <int V, typename T>
__device__ __forceinline__ void unpack(const Pack<T, V>& pack, Compute<T> (&to)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) to[j] = to_compute(pack.items[j]);
}

// To global memory. In PTX, because the compiler takes a struct, and a built-in vector alike, apart into one store per
// element when it likes; without a memory clobber, because no kernel reads what it stored this way.
template <int V, typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, V>& pack) {
#if defined(__CUDACC__)
  constexpr int kWords = sizeof(pack) / 4;
  if constexpr (sizeof(pack) % 16 == 0 || sizeof(pack) == 8) {
    uint32_t words[kWords];
    memcpy(words, &pack, sizeof(pack));
    if constexpr (kWords == 2) {
      asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]), "r"(words[1]));
    } else {
#pragma unroll
      for (int k = 0; k < kWords; k += 4) {
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(
                         __cvta_generic_to_global(reinterpret_cast<uint32_t*>(to) + k)),
                     "r"(words[k]), "r"(words[k + 1]), "r"(words[k + 2]), "r"(words[k + 3]));
      }
    }
    return;
  }
#endif
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

template <int V, typename T, typename A>
__device__ __forceinline__ void store_values(T* to, const A (&values)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int j = 0; j < V; ++j) from_compute(values[j], &pack.items[j]);
  store_pack<V>(to, pack);
}

template <typename T>
__device__ __forceinline__ Compute<T> load_operand(const Operand& operand, int64_t index) {
  if (operand.float32) return static_cast<Compute<T>>(static_cast<const float*>(operand.data)[index]);
  return to_compute(static_cast<const T*>(operand.data)[index]);
}

template <typename T, int V>
__device__ __forceinline__ void load_operands(const Operand& operand, int64_t index, Compute<T> (&to)[V]) {
  if (operand.float32) {
    const auto pack = load_pack<V>(static_cast<const float*>(operand.data) + index);
#pragma unroll
    for (int j = 0; j < V; ++j) to[j] = static_cast<Compute<T>>(pack.items[j]);
  } else {
    unpack<V>(load_pack<V>(static_cast<const T*>(operand.data) + index), to);
  }
}

template <typename T>
__device__ __forceinline__ void store_gradient(const Gradient& gradient, int64_t index, Compute<T> value) {
  if (gradient.float32) {
    from_compute(value, static_cast<float*>(gradient.data) + index);
  } else {
    from_compute(value, static_cast<T*>(gradient.data) + index);
  }
}

template <typename T, int V>
__device__ __forceinline__ void store_gradients(const Gradient& gradient, int64_t index,
                                                const Compute<T> (&values)[V]) {
  if (gradient.float32) {
    store_values<V>(static_cast<float*>(gradient.data) + index, values);
  } else {
    store_values<V>(static_cast<T*>(gradient.data) + index, values);
  }
}

}  // namespace strucfast::cuda
