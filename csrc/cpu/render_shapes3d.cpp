#include "render_shapes3d.h"

#include <cstring>

#include "../common/simd.h"

namespace strucfast {
namespace {

typedef uint8_t Bytes32 __attribute__((vector_size(32)));
typedef uint64_t Lanes __attribute__((vector_size(32)));
typedef uint16_t Words __attribute__((vector_size(32)));
static_assert(kShapes3dBlock == sizeof(Words), "one step renders as many pixels as a vector has bytes");

// 32 bytes of a layer as 16-bit numbers, without any shuffle: pixels 0, 2, 4, ... and 1, 3, 5, ...
struct EvenOdd {
  Words even, odd;
};

SF_INLINE void load(const uint8_t* from, EvenOdd& to) {
  Words both;
  std::memcpy(&both, from, sizeof both);
  to.even = both & 255;
  to.odd = both >> 8;
}

// gcc has the one builtin in every version and the other since 12; clang has only the other.
#if defined(__clang__)
#define SF_SHUFFLE(a, b, mask, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SF_SHUFFLE(a, b, mask, ...) __builtin_shuffle(a, b, mask{__VA_ARGS__})
#endif
// The same permutation within both 128-bit halves.
#define SF_PERMUTE(v, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)                                                 \
  SF_SHUFFLE(v, v, Bytes32, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, 16 + a, 16 + b, 16 + c, 16 + d, 16 + e,   \
             16 + f, 16 + g, 16 + h, 16 + i, 16 + j, 16 + k, 16 + l, 16 + m, 16 + n, 16 + o, 16 + p)

// Stores half kFirst (128 bits) of a and half kSecond of b.
template <int kFirst, int kSecond>
SF_INLINE void store_halves(const Bytes32& a, const Bytes32& b, uint8_t* to) {
  const Lanes halves =
      SF_SHUFFLE((Lanes)a, (Lanes)b, Lanes, 2 * kFirst, 2 * kFirst + 1, 4 + 2 * kSecond, 5 + 2 * kSecond);
  std::memcpy(to, &halves, sizeof halves);
}

// Three planes of 32 bytes to 32 rgb triples. Within each half a plane is permuted once, so that every byte already has
// the offset (mod 16) that it will have in its output; the outputs then only select between planes.
SF_INLINE void store_interleaved(const Bytes32& red, const Bytes32& green, const Bytes32& blue, uint8_t* to) {
  const Bytes32 r = SF_PERMUTE(red, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15, 10, 5);
  const Bytes32 g = SF_PERMUTE(green, 5, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15, 10);
  const Bytes32 b = SF_PERMUTE(blue, 10, 5, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15);
  constexpr uint8_t k = 255;
  constexpr Bytes32 first = {k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k,
                             k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k};
  constexpr Bytes32 second = {0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0,
                              0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0};
  constexpr Bytes32 third = {0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0,
                             0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0};
  // Bytes 0-15, 16-31 and 32-47 of either half's 16 triples.
  const Bytes32 low = (r & first) | (g & second) | (b & third);
  const Bytes32 middle = (g & first) | (b & second) | (r & third);
  const Bytes32 high = (b & first) | (r & second) | (g & third);
  store_halves<0, 0>(low, middle, to);
  store_halves<0, 1>(high, low, to + 32);
  store_halves<1, 1>(middle, high, to + 64);
}

#undef SF_PERMUTE
#undef SF_SHUFFLE

}  // namespace

SF_CLONES void shapes3d_recolour(int64_t begin, int64_t end, const uint8_t* SF_RESTRICT layers,
                                 const uint16_t* SF_RESTRICT palette, const int64_t* SF_RESTRICT indices,
                                 int64_t pixels, uint8_t* SF_RESTRICT out) {
  for (int64_t n = begin; n < end; ++n) {
    const int64_t geometry = indices[n] % kShapes3dGeometries, hues = indices[n] / kShapes3dGeometries;
    const uint16_t* floor_hue = palette + hues / 100 * 3;
    const uint16_t* wall_hue = palette + (kShapes3dHues + hues / 10 % 10) * 3;
    const uint16_t* object_hue = palette + (2 * kShapes3dHues + hues % 10) * 3;
    const uint8_t* layer = layers + geometry * kShapes3dLayers * pixels;
    uint8_t* to = out + n * pixels * 3;
    for (int64_t p = 0; p < pixels; p += kShapes3dBlock) {
      EvenOdd floor, wall, object, white;
      load(layer + p, floor);
      load(layer + pixels + p, wall);
      load(layer + 2 * pixels + p, object);
      load(layer + 3 * pixels + p, white);
      white.even = (white.even << 8) + 128;
      white.odd = (white.odd << 8) + 128;
      Bytes32 rgb[3];
      for (int c = 0; c < 3; ++c) {
        const uint16_t f = floor_hue[c], w = wall_hue[c], o = object_hue[c];
        const Words even = floor.even * f + wall.even * w + object.even * o + white.even;
        const Words odd = floor.odd * f + wall.odd * w + object.odd * o + white.odd;
        // The upper bytes are the results; even pixels move down, odd pixels stay.
        rgb[c] = (Bytes32)((even >> 8) | (odd & 0xff00));
      }
      store_interleaved(rgb[0], rgb[1], rgb[2], to + 3 * p);
    }
  }
}

}  // namespace strucfast
