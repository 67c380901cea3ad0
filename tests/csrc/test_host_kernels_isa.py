"""The torch-free renderers and histograms at every x86-64 level that this CPU has: the same integers at each."""

import ctypes

import numpy as np
import pytest
from helpers.isa import LEVELS, compile_level

from strucfast.data import _shapes3d_scene, dsprites, shapes3d

SOURCES = ("render_shapes3d.cpp", "render_shapes3d_geometry.cpp", "render_dsprites.cpp", "histogram.cpp")

WRAPPER = """
#include "csrc/cpu/histogram.h"
#include "csrc/cpu/render_dsprites.h"
#include "csrc/cpu/render_shapes3d.h"
#include <vector>
using namespace strucfast;
extern "C" {
void geometry(int64_t number, int64_t size, uint8_t* layers) { shapes3d_geometry(number, number + 1, size, layers); }
void recolour(int64_t n, const uint8_t* layers, const uint16_t* palette, const int64_t* rows, int64_t pixels,
              uint8_t* out) {
  shapes3d_recolour(0, n, layers, palette, rows, pixels, out);
}
void sprites(int64_t n, const uint8_t* sprites, const int64_t* rows, int64_t size, uint8_t* out) {
  dsprites_copy(0, n, sprites, rows, size, out);
}
int range(int64_t n, int64_t columns, const float* values, float* low, float* high) {
  std::vector<float> scratch(column_range_scratch(columns));
  return column_range(values, 0, n, columns, low, high, scratch.data());
}
void labels(int64_t n, int64_t columns, const float* codes, const double* edges, int64_t bins, int32_t* out) {
  bin_labels(codes, 0, n, columns, edges, bins, out);
}
int joint(int64_t n, int64_t columns, const float* codes, const double* edges, int64_t bins, const int64_t* factors,
          const int64_t* low, const int64_t* sizes, uint32_t* out) {
  const FactorGroup group{0, 2, sizes[0] * sizes[1], 0};
  const JointHistogram job{columns, 2, bins, 1, factors, low, sizes, edges, &group};
  std::vector<int32_t> scratch(kHistogramBlock);
  return joint_histogram(codes, 0, n, job, out, scratch.data());
}
}
"""


@pytest.fixture(scope="module", params=LEVELS)
def call(request, tmp_path_factory):
    """call(name, *arguments): arrays go as pointers, numbers as int64."""
    loaded = compile_level(
        request.param,
        WRAPPER,
        SOURCES,
        tmp_path_factory.mktemp("host_kernels"),
        elsewhere="tests/data and tests/metrics cover",
    )

    def run(name, *arguments):
        converted = [
            ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_int64(a) for a in arguments
        ]
        return getattr(loaded, name)(*converted)

    return run


def test_shapes3d(call):
    layers = np.zeros((480, 4, 32 * 32), np.uint8)
    numbers = np.array([0, 100, 239, 479])
    for number in numbers.tolist():
        call("geometry", number, 32, layers)
        difference = layers[number].astype(int) - _shapes3d_scene.geometry(number, 32)
        assert np.abs(difference).max() <= 1
    rows = np.random.default_rng(0).integers(1000, size=40) * 480 + np.tile(numbers, 10)
    images = np.full((len(rows), 32 * 32, 3), 7, np.uint8)
    call("recolour", len(rows), layers, shapes3d.palette(), rows, 32 * 32, images)
    for image, row in zip(images, rows):
        hues, number = divmod(int(row), 480)
        colours = shapes3d.palette()[[0, 1, 2], [hues // 100, hues // 10 % 10, hues % 10]].astype(int)
        parts = layers[number].astype(int)
        np.testing.assert_array_equal(image, (parts[:3].T @ colours + 256 * parts[3, :, None] + 128) >> 8)


@pytest.mark.parametrize("size", [32, 64])
def test_dsprites(call, size):
    rows = np.random.default_rng(1).integers(737_280, size=300)
    images, expected = (np.full((len(rows), size, size, 1), 7, np.uint8) for _ in range(2))
    call("sprites", len(rows), dsprites.sprites(size), rows, size, images)
    dsprites._render(rows, expected)
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("rows", [5, 3001])
def test_histogram(call, rows):
    rng = np.random.default_rng(2)
    codes = np.stack([rng.normal(size=rows), rng.integers(0, 21, rows), rng.integers(0, 5, rows) * 0.1], 1)
    codes = codes.astype(np.float32)
    factors = np.stack([rng.integers(-1, 2, rows), rng.integers(5, 9, rows)], 1)
    low, high = np.empty(3, np.float32), np.empty(3, np.float32)
    assert call("range", rows, 3, codes, low, high) == 1
    np.testing.assert_array_equal([low, high], [codes.min(0), codes.max(0)])
    edges = np.stack([np.linspace(float(a), float(b), 21) for a, b in zip(low, high)])
    expected = np.stack([np.searchsorted(edges[d, 1:-1], codes[:, d].astype(float), "right") for d in range(3)], 1)
    labels = np.full((rows, 3), -1, np.int32)
    call("labels", rows, 3, codes, edges, 20, labels)
    np.testing.assert_array_equal(labels, expected)
    counts = np.zeros((3, 20, 3, 4), np.uint32)
    assert call("joint", rows, 3, codes, edges, 20, factors, np.array([-1, 5]), np.array([3, 4]), counts) == 1
    brute = np.zeros_like(counts)
    for d in range(3):
        np.add.at(brute[d], (expected[:, d], factors[:, 0] + 1, factors[:, 1] - 5), 1)
    np.testing.assert_array_equal(counts, brute)
    # A factor outside its range is refused, not written somewhere.
    assert call("joint", rows, 3, codes, edges, 20, factors, np.array([0, 5]), np.array([3, 4]), counts) == 0
    codes[rows // 2, 1] = np.nan
    assert call("range", rows, 3, codes, low, high) == 0
