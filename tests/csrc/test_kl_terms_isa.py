"""The torch-free sums and gradients behind kl_terms at every x86-64 level that this CPU has, against float64 numpy."""

import ctypes

import numpy as np
import pytest
from helpers.isa import LEVELS, compile_level

WRAPPER = """
#include "csrc/cpu/kl_terms.h"
using namespace strucfast;
template <typename T>
void run(const int64_t* sizes, const T* const* in, const double* weights, double* sums, T* const* out) {
  OwnPosteriors<T> op{sizes[0], sizes[1], in[0], in[1], in[2], {}, {}, {}};
  for (int i = 0; i < 2; ++i) {
    op.z_strides[i] = sizes[2 + i];
    op.mean_strides[i] = sizes[4 + i];
    op.logvar_strides[i] = sizes[6 + i];
  }
  const OwnSums own = own_sums(op);
  sums[0] = own.posterior;
  sums[1] = own.prior;
  sums[2] = sum_of(in[3], op.samples * op.dims);
  own_backward(op, T(weights[0]), T(weights[1]), out[0], out[1], out[2]);
}
extern "C" void run_f32(const int64_t* sizes, const float* const* in, const double* weights, double* sums,
                        float* const* out) { run<float>(sizes, in, weights, sums, out); }
extern "C" void run_f64(const int64_t* sizes, const double* const* in, const double* weights, double* sums,
                        double* const* out) { run<double>(sizes, in, weights, sums, out); }
"""


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request, tmp_path_factory):
    return compile_level(
        request.param, WRAPPER, ("kl_terms.cpp",), tmp_path_factory.mktemp("kl_terms"), elsewhere="the op tests cover"
    )


def pointers(arrays):
    return (ctypes.c_void_p * len(arrays))(*[None if a is None else a.ctypes.data for a in arrays])


def run(library, arrays, weights, before):
    """Sums, and ``before`` (three arrays or None) with the gradients added."""
    dtype = arrays[0].dtype
    strides = [stride // dtype.itemsize for a in arrays[:3] for stride in a.strides]
    sizes = np.array([*arrays[0].shape, *strides], dtype=np.int64)
    out = [None if a is None else a.copy() for a in before]
    sums, weights = np.full(3, np.nan), np.array(weights)
    function = library.run_f32 if dtype == np.float32 else library.run_f64
    address = [ctypes.c_void_p(a.ctypes.data) for a in (sizes, weights, sums)]
    function(address[0], pointers(arrays), address[1], address[2], pointers(out))
    return sums, out


LAYOUTS = {
    "rows": np.ascontiguousarray,
    "columns": np.asfortranarray,
    "half": lambda a: np.concatenate((a, a + 1), axis=1)[:, : a.shape[1]],
    "every other": lambda a: np.stack((a, a - 1), axis=2)[..., 0],
    "repeated": lambda a: np.broadcast_to(a[:1], a.shape),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1), (128, 10), (67, 7), (3, 1000), (600, 3)])
def test_sums_and_gradients(kernels, shape, layout, dtype):
    rng = np.random.default_rng(0)
    z, mean, logvar, values = (rng.standard_normal(shape).astype(dtype) for _ in range(4))
    arrays = [*(LAYOUTS[layout](a) for a in (z, mean, logvar)), values]
    before = [rng.standard_normal(shape).astype(dtype) for _ in range(3)]
    sums, found = run(kernels, arrays, (0.75, -1.5), before)
    z, mean, logvar, values = (a.astype(np.float64) for a in arrays)
    inverse = np.exp(-0.5 * logvar)
    u = (z - mean) * inverse
    constant = np.log(2 * np.pi)
    terms = -0.5 * (u * u + logvar + constant), -0.5 * (z * z + constant), values
    eps = np.finfo(dtype).eps
    for got, want in zip(sums, terms, strict=True):
        # Equal terms round alike, up to 128 times in a lane.
        assert abs(got - want.sum()) <= 32 * eps * np.abs(want).sum()
    slopes = -0.75 * u * inverse + 1.5 * z, 0.75 * u * inverse, 0.375 * (u * u - 1)
    for got, start, slope in zip(found, before, slopes, strict=True):
        np.testing.assert_allclose(got, start + slope, rtol=8 * eps, atol=16 * eps * max(1.0, np.abs(slope).max()))


def test_what_is_not_asked_for_is_not_touched(kernels):
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((9, 5)).astype(np.float32) for _ in range(4)]
    zeros = [np.zeros((9, 5), np.float32) for _ in range(3)]
    whole = run(kernels, arrays, (1.0, 2.0), zeros)[1]
    for wanted in range(3):
        part = run(kernels, arrays, (1.0, 2.0), [a if i == wanted else None for i, a in enumerate(zeros)])[1]
        np.testing.assert_array_equal(part[wanted], whole[wanted])
    arrays[2][:] = -200.0
    # exp of 100 is infinite in float32: log q(z|x) has no weight here and adds nothing.
    dz, dmean, dlogvar = run(kernels, arrays, (0.0, 2.0), zeros)[1]
    np.testing.assert_allclose(dz, -2.0 * arrays[0])
    assert not dmean.any() and not dlogvar.any()
