"""The torch-free pairwise kernels at every x86-64 level that this CPU has, against float64 numpy."""

import ctypes

import numpy as np
import pytest
from helpers.isa import LEVELS, compile_level

WRAPPER = """
#include "csrc/cpu/pairwise.h"
#include <vector>
using namespace strucfast;
// sizes: dims, points, first, kernel; z is (dims, pairwise_stride(points)).
extern "C" void mmd(const int64_t* sizes, double width, const float* z, float* value, float* first, float* second) {
  Mmd<float> m{};
  m.slices = 1;
  m.dims = sizes[0];
  m.points = sizes[1];
  m.first = sizes[2];
  m.unbiased = m.slope_first = m.slope_second = true;
  m.kernel = sizes[3] == 0 ? PairKernel::kRbf : PairKernel::kImq;
  const Bandwidth<float> widths = bandwidth<float>(m.kernel, width);
  m.bandwidths = &widths;
  m.num_bandwidths = 1;
  m.z = z;
  std::vector<double> sums(m.units());
  std::vector<float> memory(m.units() * mmd_memory(m), 0.0f / 0.0f);
  m.sums = sums.data();
  m.memory = memory.data();
  // In two parts, the second first: units do not depend on one another.
  mmd_pairs(m, m.units() / 2, m.units());
  mmd_pairs(m, 0, m.units() / 2);
  mmd_finish(m, value, first, second);
}
extern "C" void hsic(const int64_t* sizes, double width, const float* z, float* value, float* dx, float* dy) {
  Hsic<float> h{};
  h.points = sizes[1];
  h.kernel = sizes[3] == 0 ? PairKernel::kRbf : PairKernel::kImq;
  const Bandwidth<float> widths = bandwidth<float>(h.kernel, width);
  std::vector<float> centre_x(h.points), centre_y(h.points);
  h.x = {sizes[0], &widths, 1, z, centre_x.data()};
  h.y = {sizes[2], &widths, 1, z + sizes[0] * pairwise_stride(h.points), centre_y.data()};
  std::vector<double> sums(h.units() * hsic_sums(h));
  std::vector<float> memory(h.units() * hsic_memory(h), 0.0f / 0.0f);
  h.sums = sums.data();
  h.memory = memory.data();
  h.slope_x = h.slope_y = true;
  hsic_pairs(h, 0, h.units());
  hsic_finish(h, value, centre_x.data(), centre_y.data());
  hsic_backward_pairs(h, 0, h.units());
  hsic_backward_finish(h, 1.0f, dx, dy);
}
"""


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request, tmp_path_factory):
    return compile_level(
        request.param,
        WRAPPER,
        ("pairwise_mmd.cpp", "pairwise_hsic.cpp"),
        tmp_path_factory.mktemp("pairwise"),
        elsewhere="the op tests cover",
        optimise="-O2",
    )


def call(function, sizes, width, columns, shapes):
    """Points as columns in the padded layout; results of the given shapes."""
    points = columns.shape[1]
    padded = np.full((len(columns), (points + 31) // 32 * 32 + 16), np.nan, np.float32)
    padded[:, :points] = columns
    results = [np.full(shape, np.nan, np.float32) for shape in ((1,), *shapes)]
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (padded, *results)]
    function((ctypes.c_int64 * 4)(*sizes), ctypes.c_double(width), *pointers)
    return results


def gram(a, b, kernel, width):
    """k and f of dk/da = f (a - b)."""
    square = ((a[:, None] - b[None]) ** 2).sum(2)
    k = np.exp(-square / (2 * width**2)) if kernel == 0 else width / (width + square)
    return k, -k / width**2 if kernel == 0 else -2 * k**2 / width


@pytest.mark.parametrize("kernel", (0, 1))
@pytest.mark.parametrize("n,m,d", ((2, 3, 1), (37, 64, 6), (600, 70, 3)))
def test_mmd(kernels, n, m, d, kernel):
    z = np.random.default_rng(0).normal(size=(n + m, d)).astype(np.float32)
    value, dx, dy = call(kernels.mmd, (d, n + m, n, kernel), 1.5, z.T, ((n, d), (m, d)))
    exact = z.astype(np.float64)
    k, f = gram(exact, exact, kernel, 1.5)
    weights = np.full((n + m, n + m), -1 / (n * m))
    weights[:n, :n], weights[n:, n:] = 1 / (n * (n - 1)), 1 / (m * (m - 1))
    np.fill_diagonal(weights, 0)
    slope = 2 * ((weights * f)[:, :, None] * (exact[:, None] - exact[None])).sum(1)
    assert abs(value[0] - (weights * k).sum()) <= 2e-7
    assert np.abs(np.concatenate([dx, dy]) - slope).max() <= 2e-6 * np.abs(slope).max()


@pytest.mark.parametrize("kernel", (0, 1))
@pytest.mark.parametrize("n,d,e", ((1, 1, 1), (37, 6, 2), (600, 3, 1)))
def test_hsic(kernels, n, d, e, kernel):
    z = np.random.default_rng(1).normal(size=(n, d + e)).astype(np.float32)
    value, dx, dy = call(kernels.hsic, (d, n, e, kernel), 1.5, z.T, ((n, d), (n, e)))
    x, y = z[:, :d].astype(np.float64), z[:, d:].astype(np.float64)
    (k, f), (m, g) = gram(x, x, kernel, 1.5), gram(y, y, kernel, 1.5)
    h = np.eye(n) - 1 / n
    assert abs(value[0] - np.trace(k @ h @ m @ h) / n**2) <= 1e-7
    for found, points, factor, other in ((dx, x, f, m), (dy, y, g, k)):
        slope = 2 / n**2 * ((factor * (h @ other @ h))[:, :, None] * (points[:, None] - points[None])).sum(1)
        assert np.abs(found - slope).max() <= 1e-8 + 1e-5 * np.abs(slope).max()
