#pragma once
#include <cstdint>

// The 3D Shapes scene: floor, two walls that meet in a corner, one lit object with a soft shadow.
//
// An image is linear in its three colours once the geometry (object scale 8, shape 4, camera orientation 15) is fixed,
// so each of the 480 geometries is ray cast once into four 8-bit layers and recoloured on the fly:
//   pixel[c] = (floor * q_floor[c] + wall * q_wall[c] + object * q_object[c] + 256 * white + 128) >> 8
// Layers hold shading times coverage; white is the highlight, cut so that the sum of the four never exceeds 255.
namespace strucfast {

constexpr int64_t kShapes3dGeometries = 8 * 4 * 15;
constexpr int64_t kShapes3dLayers = 4;
constexpr int64_t kShapes3dHues = 10;
constexpr int64_t kShapes3dImages = kShapes3dHues * kShapes3dHues * kShapes3dHues * kShapes3dGeometries;
// Sizes are whole multiples of this many pixels, the width of one step of the recolouring loop.
constexpr int64_t kShapes3dBlock = 32;

// Ray casts geometries [begin, end); geometry = (scale * 4 + shape) * 15 + orientation.
// layers: (480, 4, image_size * image_size) uint8, floor, wall, object, white.
void shapes3d_geometry(int64_t begin, int64_t end, int64_t image_size, uint8_t* layers);

// Renders images [begin, end) of the list `indices` (each in [0, 480000), the row order of 3dshapes.h5).
// palette: (3, 10, 3) uint16, material x hue x rgb, 0..256; out: (N, pixels, 3) uint8, pixels a multiple of
// kShapes3dBlock.
void shapes3d_recolour(int64_t begin, int64_t end, const uint8_t* layers, const uint16_t* palette,
                       const int64_t* indices, int64_t pixels, uint8_t* out);

}  // namespace strucfast
