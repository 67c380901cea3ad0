#pragma once
#include <cstdint>

#include "../common/simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// Stores that go past the caches, for results much larger than any of them: a usual store first reads the line that it
// is about to overwrite, a third of the traffic of an elementwise kernel.
namespace strucfast {

// Results of a call that are at least this large would not be found in a cache by whoever reads them next.
constexpr int64_t kStreamBytes = int64_t{32} << 20;

#if defined(__SSE2__)
constexpr bool kCanStream = true;

inline void stream_bytes(const char* from, char* to, int64_t size) {
  int64_t i = 0;
  const auto copy = [&](int64_t end) {
    for (; i < end; ++i) to[i] = from[i];
  };
  // The head and the tail share their lines with another range, maybe another thread's.
  const int64_t head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) & 63);
  copy(head < size ? head : size);
  for (; i + 64 <= size; i += 64) {
    for (int64_t j = i; j < i + 64; j += 16) {
      const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + j));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + j), part);
    }
  }
  copy(size);
}

// One cache line, to an address that is aligned to it.
SF_INLINE void stream_line(const void* from, void* to) {
  for (int i = 0; i < 4; ++i) {
    const __m128i part = _mm_loadu_si128(static_cast<const __m128i*>(from) + i);
    _mm_stream_si128(static_cast<__m128i*>(to) + i, part);
  }
}

// Before another thread may read what was streamed.
inline void finish_streams() { _mm_sfence(); }
#else
constexpr bool kCanStream = false;
inline void stream_line(const void*, void*) {}
inline void stream_bytes(const char*, char*, int64_t) {}
inline void finish_streams() {}
#endif

}  // namespace strucfast
