#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define SF_HOST_DEVICE __host__ __device__
#else
#define SF_HOST_DEVICE
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define SF_INLINE __forceinline
#define SF_RESTRICT __restrict
#else
// Only an inlined callee is compiled for the instruction set of the clone that calls it.
#define SF_INLINE inline __attribute__((always_inline))
#define SF_RESTRICT __restrict__
#endif

// One function, three instruction sets, chosen by the loader. Needs ifunc (glibc) and a compiler that knows the
// x86-64 levels; elsewhere, and with SF_NO_CLONES (the per-level tests), the plain code is compiled once.
#if !defined(SF_NO_CLONES) && !defined(__CUDACC__) && defined(__x86_64__) && defined(__linux__) && \
    defined(__GLIBC__) &&                                                                          \
    ((defined(__clang__) && __clang_major__ >= 17) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 12))
#define SF_HAS_CLONES 1
#define SF_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SF_CLONES
#endif
