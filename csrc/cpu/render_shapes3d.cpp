#include "render_shapes3d.h"

#include <cstring>

#include "../common/simd.h"

namespace strucfast {
namespace {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));
typedef uint16_t Words32 __attribute__((vector_size(64)));

SF_INLINE void load_words(const uint8_t* from, Words32& to) {
  Bytes32 bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  to = __builtin_convertvector(bytes, Words32);
}

// Three planes of 16 bytes to 16 rgb triples. Each plane is permuted once, so that every byte already has the offset
// (mod 16) that it will have in its output vector; the outputs then only select between planes.
SF_INLINE void store_interleaved(const Bytes16& red, const Bytes16& green, const Bytes16& blue, uint8_t* to) {
  const Bytes16 r = __builtin_shufflevector(red, red, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15, 10, 5);
  const Bytes16 g = __builtin_shufflevector(green, green, 5, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15, 10);
  const Bytes16 b = __builtin_shufflevector(blue, blue, 10, 5, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15);
  constexpr uint8_t k = 255;
  constexpr Bytes16 first = {k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k};
  constexpr Bytes16 second = {0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0};
  constexpr Bytes16 third = {0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0, 0, k, 0};
  const Bytes16 out0 = (r & first) | (g & second) | (b & third);
  const Bytes16 out1 = (g & first) | (b & second) | (r & third);
  const Bytes16 out2 = (b & first) | (r & second) | (g & third);
  std::memcpy(to, &out0, 16);
  std::memcpy(to + 16, &out1, 16);
  std::memcpy(to + 32, &out2, 16);
}

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
    for (int64_t p = 0; p < pixels; p += 32) {
      Words32 floor, wall, object, white;
      load_words(layer + p, floor);
      load_words(layer + pixels + p, wall);
      load_words(layer + 2 * pixels + p, object);
      load_words(layer + 3 * pixels + p, white);
      white = (white << 8) + 128;
      union {
        Bytes32 all;
        Bytes16 half[2];
      } rgb[3];
      for (int c = 0; c < 3; ++c) {
        const Words32 sum = floor * floor_hue[c] + wall * wall_hue[c] + object * object_hue[c] + white;
        rgb[c].all = __builtin_convertvector(sum >> 8, Bytes32);
      }
      store_interleaved(rgb[0].half[0], rgb[1].half[0], rgb[2].half[0], to + 3 * p);
      store_interleaved(rgb[0].half[1], rgb[1].half[1], rgb[2].half[1], to + 3 * p + 48);
    }
  }
}

}  // namespace strucfast
