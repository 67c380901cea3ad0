#include "../../cpu/render_dsprites.h"
#include "../../cpu/render_shapes3d.h"
#include "arrays.h"
#include "bind.h"
#include "threads.h"

namespace strucfast {
namespace {

// Recoloured pixels that are worth a thread: about 0.4 ms, ten times what it takes to start one. Copying sprites is
// 8 times faster.
constexpr int64_t kGrainPixels = 1 << 21;

py::array_t<uint8_t> shapes3d_geometry_py(int64_t image_size, int64_t threads) {
  if (image_size <= 0 || image_size % 8 != 0 || image_size > 1024)
    throw py::value_error("image_size: expected a multiple of 8 in [8, 1024], got " + std::to_string(image_size));
  py::array_t<uint8_t> layers({kShapes3dGeometries, kShapes3dLayers, image_size * image_size});
  uint8_t* data = layers.mutable_data();
  py::gil_scoped_release release;
  parallel_ranges(kShapes3dGeometries, threads, 1, [&](int64_t, int64_t begin, int64_t end) {
    shapes3d_geometry(begin, end, image_size, data);
  });
  return layers;
}

void render_shapes3d_py(const Array<uint8_t>& layers, const Array<uint16_t>& palette, const Array<int64_t>& indices,
                        Array<uint8_t>& out, int64_t threads) {
  check_shape("layers", layers, {kShapes3dGeometries, kShapes3dLayers, -1});
  check_shape("palette", palette, {3, kShapes3dHues, 3});
  check_indices(indices, kShapes3dImages);
  const int64_t pixels = layers.shape(2), count = indices.shape(0);
  if (pixels % kShapes3dBlock != 0)
    throw py::value_error("layers: expected a multiple of " + std::to_string(kShapes3dBlock) + " pixels, got " +
                          std::to_string(pixels));
  if (out.ndim() != 4 || out.shape(0) != count || out.shape(1) * out.shape(2) != pixels || out.shape(3) != 3)
    throw py::value_error("out: expected shape (" + std::to_string(count) + ", H, W, 3) with H*W = " +
                          std::to_string(pixels) + ", got " + shape_text(out));
  const uint8_t* layer_data = layers.data();
  const uint16_t* palette_data = palette.data();
  const int64_t* index_data = indices.data();
  uint8_t* out_data = out.mutable_data();
  py::gil_scoped_release release;
  parallel_ranges(count, threads, kGrainPixels / pixels, [&](int64_t, int64_t begin, int64_t end) {
    shapes3d_recolour(begin, end, layer_data, palette_data, index_data, pixels, out_data);
  });
}

void render_dsprites_py(const Array<uint8_t>& sprites, const Array<int64_t>& indices, Array<uint8_t>& out,
                        int64_t threads) {
  check_indices(indices, kDspritesImages);
  const int64_t count = indices.shape(0), size = out.ndim() > 1 ? out.shape(1) : 0;
  if (size != 32 && size != 64)
    throw py::value_error("out: expected shape (N, 64, 64, 1) or (N, 32, 32, 1), got " + shape_text(out));
  check_shape("out", out, {count, size, size, 1});
  if (size == 64)
    check_shape("sprites", sprites, {kDspritesSprites, 33, 33});
  else
    check_shape("sprites", sprites, {kDspritesSprites, 2, 2, 17, 17});
  const uint8_t* sprite_data = sprites.data();
  const int64_t* index_data = indices.data();
  uint8_t* out_data = out.mutable_data();
  py::gil_scoped_release release;
  parallel_ranges(count, threads, 8 * kGrainPixels / (size * size), [&](int64_t, int64_t begin, int64_t end) {
    dsprites_copy(begin, end, sprite_data, index_data, size, out_data);
  });
}

}  // namespace

void bind_render(py::module_& m) {
  m.def("shapes3d_geometry", &shapes3d_geometry_py, py::arg("image_size"), py::arg("threads"),
        "Ray cast the 480 geometries of the 3D Shapes scene: (480, 4, image_size * image_size) uint8.");
  m.def("render_dsprites", &render_dsprites_py, py::arg("sprites").noconvert(), py::arg("indices").noconvert(),
        py::arg("out").noconvert(), py::arg("threads"),
        "Copy the sprites of these row numbers into out (N, H, W, 1) uint8.");
  m.def("render_shapes3d", &render_shapes3d_py, py::arg("layers").noconvert(), py::arg("palette").noconvert(),
        py::arg("indices").noconvert(), py::arg("out").noconvert(), py::arg("threads"),
        "Render the images with these row numbers into out (N, H, W, 3) uint8.");
}

}  // namespace strucfast
