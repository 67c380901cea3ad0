#pragma once
#include <cstdint>

// dSprites: one white sprite on black. A sprite (shape 3, scale 6, orientation 40) is drawn once; an image is that
// sprite copied to one of 32 x 32 places, one pixel apart, none of which clips it.
namespace strucfast {

constexpr int64_t kDspritesSprites = 3 * 6 * 40;
constexpr int64_t kDspritesPositions = 32;
constexpr int64_t kDspritesImages = kDspritesSprites * kDspritesPositions * kDspritesPositions;

// Copies images [begin, end) of the list `indices` (each in [0, 737280), the row order of the real file).
// image_size 64: sprites (720, 33, 33). image_size 32, each pixel the mean of 2x2: sprites (720, 2, 2, 17, 17), one for
// each parity of y and x, because a place one pixel further falls into other 2x2 cells.
// out: (N, image_size, image_size) uint8.
void dsprites_copy(int64_t begin, int64_t end, const uint8_t* sprites, const int64_t* indices, int64_t image_size,
                   uint8_t* out);

}  // namespace strucfast
