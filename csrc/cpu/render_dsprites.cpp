#include "render_dsprites.h"

#include <cstring>

#include "../common/simd.h"

namespace strucfast {
namespace {

// Sizes are template constants: a row copy of known length is a few vector moves instead of a call.
template <int64_t kSize, int64_t kSide, int64_t kCell>
SF_INLINE void copy_range(int64_t begin, int64_t end, const uint8_t* sprites, const int64_t* indices, uint8_t* out) {
  for (int64_t n = begin; n < end; ++n) {
    const int64_t sprite = indices[n] / (kDspritesPositions * kDspritesPositions);
    const int64_t x = indices[n] / kDspritesPositions % kDspritesPositions, y = indices[n] % kDspritesPositions;
    const uint8_t* from = sprites + ((sprite * kCell + y % kCell) * kCell + x % kCell) * kSide * kSide;
    uint8_t* image = out + n * kSize * kSize;
    std::memset(image, 0, kSize * kSize);
    uint8_t* to = image + y / kCell * kSize + x / kCell;
    for (int64_t row = 0; row < kSide; ++row) std::memcpy(to + row * kSize, from + row * kSide, kSide);
  }
}

}  // namespace

SF_CLONES void dsprites_copy(int64_t begin, int64_t end, const uint8_t* SF_RESTRICT sprites,
                             const int64_t* SF_RESTRICT indices, int64_t image_size, uint8_t* SF_RESTRICT out) {
  if (image_size == 64)
    copy_range<64, 33, 1>(begin, end, sprites, indices, out);
  else
    copy_range<32, 17, 2>(begin, end, sprites, indices, out);
}

}  // namespace strucfast
