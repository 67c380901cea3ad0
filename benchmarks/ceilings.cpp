// What benchmarks/_ceilings.py measures beside torch's own: exp in the caches, and a copy that stores past them.
#include <cstdint>

#include "common/vec_math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

extern "C" void exp_many(const float* in, float* out, int64_t count, int64_t repeats) {
  for (int64_t turn = 0; turn < repeats; ++turn) {
    // The compiler must not see that every turn is the same.
    asm volatile("" ::"r"(in), "r"(out) : "memory");
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = strucfast::vexp_bounded(in[i]);
  }
}

// out is aligned to 64 bytes, count a multiple of 16.
extern "C" void copy_past_caches(const float* in, float* out, int64_t count) {
#if defined(__x86_64__)
  // Read a page ahead: the hardware's own prefetch leaves a third of the bandwidth unused. Past the end it does nothing.
  for (int64_t i = 0; i < count; i += 16) {
    _mm_prefetch(reinterpret_cast<const char*>(in + i) + 4096, _MM_HINT_T0);
#if defined(__AVX512F__)
    _mm512_stream_ps(out + i, _mm512_loadu_ps(in + i));
#else
    for (int64_t j = i; j < i + 16; j += 4) _mm_stream_ps(out + j, _mm_loadu_ps(in + j));
#endif
  }
  _mm_sfence();
#else
  for (int64_t i = 0; i < count; ++i) out[i] = in[i];
#endif
}
