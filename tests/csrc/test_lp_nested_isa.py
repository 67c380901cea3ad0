"""The torch-free Lp-nested kernel at every x86-64 level that this CPU has, against numpy in long double."""

import ctypes

import numpy as np
import pytest
from helpers.isa import LEVELS, compile_level

WRAPPER = """
#include "csrc/common/digamma.h"
#include "csrc/cpu/lp_nested.h"
#include <vector>
using namespace strucfast;
extern "C" double digamma_of(double x) { return digamma(x); }
#define WRAP(NAME, T)                                                                                                \\
  extern "C" int64_t run_##NAME(const int64_t* dims, const int64_t* sizes, const T* p, const T* scale, T root,       \\
                                const T* z, const T* grad, T* log_prob, T* dz, double* sums, int64_t pieces) {       \\
    std::vector<LpSubspace<T>> parts;                                                                                \\
    int64_t offset = 0, largest = 0;                                                                                 \\
    for (int64_t k = 0; k < dims[2]; offset += sizes[k++]) {                                                         \\
      const bool one = sizes[k] == 1 || p[k] == 1;                                                                   \\
      const LpKind kind = one ? LpKind::kOne : p[k] == 2 ? LpKind::kTwo : LpKind::kGeneral;                          \\
      parts.push_back({offset, sizes[k], kind, p[k], 1 / scale[k]});                                                 \\
      largest = largest < sizes[k] ? sizes[k] : largest;                                                             \\
    }                                                                                                                \\
    LpNested<T> op{dims[0], dims[1], dims[2], largest, parts.data(), root, z, dims[3], T(0), log_prob,               \\
                   grad, 1, true, dz, nullptr};                                                                      \\
    const int64_t units = lp_nested_units(op), columns = 2 + 2 * dims[2];                                            \\
    std::vector<double> of_units(units * columns, -1e300);                                                           \\
    op.sums = of_units.data();                                                                                       \\
    for (int64_t i = 0; i < pieces; ++i) {                                                                           \\
      std::vector<T> scratch(lp_nested_scratch(op), T(1) / T(0) - T(1) / T(0));                                      \\
      lp_nested_forward(op, units * i / pieces, units * (i + 1) / pieces, scratch.data());                           \\
      lp_nested_backward(op, units * i / pieces, units * (i + 1) / pieces, scratch.data());                          \\
    }                                                                                                                \\
    for (int64_t i = 0; i < units * columns; ++i) sums[i % columns] += of_units[i];                                  \\
    return units;                                                                                                    \\
  }
WRAP(f32, float)
WRAP(f64, double)
"""


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request, tmp_path_factory):
    loaded = compile_level(
        request.param, WRAPPER, ("lp_nested.cpp",), tmp_path_factory.mktemp("lp_nested"), elsewhere="the op tests cover"
    )
    loaded.digamma_of.restype, loaded.digamma_of.argtypes = ctypes.c_double, [ctypes.c_double]
    for name, real in (("f32", ctypes.c_float), ("f64", ctypes.c_double)):
        function = getattr(loaded, f"run_{name}")
        function.restype = ctypes.c_int64
        function.argtypes = [ctypes.c_void_p] * 4 + [real] + [ctypes.c_void_p] * 5 + [ctypes.c_int64]
    return loaded


def reference(z, grad, sizes, root, p, scale):
    """(minus the energy, dz, sums) in long double, by logarithms relative to the largest coordinate."""
    log_sum, entropies, energies, of_z = 0.0, [], [], []
    for part, p_k, s_k in zip(np.split(z.astype(np.longdouble), np.cumsum(sizes)[:-1], axis=1), p, scale, strict=True):
        zero = part == 0
        empty = zero.all(axis=1)
        logs = np.log(np.where(zero, 1.0, np.abs(part)))
        top = np.where(empty, 0.0, np.where(zero, -np.inf, logs).max(axis=1))
        total = np.where(empty, 1.0, np.where(zero, 0.0, np.exp(p_k * (logs - top[:, None]))).sum(axis=1))
        log_norm = top + np.log(total) / p_k
        share = np.where(zero, 0.0, logs - log_norm[:, None])
        energy = np.where(empty, 0.0, np.exp(root * log_norm)) / s_k
        slope = np.exp((root - 1) * log_norm[:, None] + (p_k - 1) * share)
        of_z.append(np.where(zero, 0.0, -root / s_k * slope * np.sign(part) * grad[:, None]))
        weight = np.where(zero, 0.0, np.exp(p_k * share))
        entropy = -(weight * p_k * share).sum(axis=1)
        log_sum += (grad * energy * log_norm).sum()
        entropies.append((grad * energy * entropy).sum())
        energies.append(grad * energy)
    sums = np.array([grad.sum(), log_sum, *entropies, *(e.sum() for e in energies)])
    return -sum(e / grad for e in energies), np.concatenate(of_z, axis=1), sums


def run(library, z, grad, sizes, root, p, scale, pieces=1):
    suffix = "f32" if z.dtype == np.float32 else "f64"
    dims = np.array([*z.shape, len(sizes), z.strides[0] // z.itemsize], np.int64)
    p, scale, sizes = np.asarray(p, z.dtype), np.asarray(scale, z.dtype), np.asarray(sizes, np.int64)
    log_prob, dz = np.full(len(z), np.nan, z.dtype), np.full(z.shape, np.nan, z.dtype)
    sums = np.zeros(2 + 2 * len(sizes))
    addresses = [a.ctypes.data for a in (dims, sizes, p, scale)]
    results = [a.ctypes.data for a in (z, grad, log_prob, dz, sums)]
    units = getattr(library, f"run_{suffix}")(*addresses, root, *results, pieces)
    return log_prob, dz, sums, units


def make(rows, sizes, dtype, magnitude=1.0, seed=0):
    rng = np.random.default_rng(seed)
    # A slice of wider rows: the kernel must honour the stride of z.
    z = (magnitude * rng.standard_normal((rows, sum(sizes) + 3))).astype(dtype)[:, 1 : 1 + sum(sizes)]
    return z, rng.uniform(0.5, 2.0, rows).astype(dtype)


def check(results, exact, dtype):
    # Exponents times logarithms cost digits: the bounds that the golden numbers state.
    of_value, of_z = (5e-6, 5e-5) if dtype == np.float32 else (1e-13, 1e-12)
    for got, want, tolerance in zip(results[:2], exact[:2], (of_value, of_z), strict=True):
        assert (np.abs(got - want) <= tolerance * np.abs(want) + np.finfo(dtype).tiny).all()
    # log v changes sign, so its sum is judged by the sum of the energies.
    sums = exact[2].astype(np.float64)
    np.testing.assert_allclose(results[2], sums, rtol=of_value, atol=of_value * np.abs(sums).max())


CASES = [
    (300, (4, 4, 4, 4, 4), [2.2] * 5),
    (129, (1, 2, 3, 4, 5, 6, 7, 8), [1.5, 2.0, 1.0, 2.2, 0.75, 3.0, 1.25, 2.0]),
    (1, (3, 1), [2.2, 1.7]),
    (70, (33, 9), [2.2, 12.0]),
    (1300, (2,), [1.8]),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("magnitude", [1e-20, 0.02, 1.0, 100.0, 1e8])
@pytest.mark.parametrize("rows, sizes, p", CASES)
def test_against_float64(kernels, rows, sizes, p, magnitude, dtype):
    z, grad = make(rows, sizes, dtype, magnitude)
    scale, root = np.linspace(0.5, 2.0, len(sizes)).astype(dtype), float(dtype(2.1))
    p = [float(dtype(v)) for v in p]
    results = run(kernels, z, grad, sizes, root, p, scale)
    assert results[3] == (rows + 511) // 512
    check(results, reference(z, grad.astype(np.float64), sizes, root, p, scale.astype(np.float64)), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zeros_and_mixed_magnitudes(kernels, dtype):
    rng = np.random.default_rng(1)
    sizes, p, scale, root = (4, 3, 2, 1), [2.25, 1.0, 2.0, 0.5], np.ones(4, dtype), 2.125
    z, grad = make(200, sizes, dtype)
    z *= (10.0 ** rng.integers(-18, 17, z.shape)).astype(dtype)
    z[rng.random(z.shape) < 0.3] = 0
    z[5] = 0
    results = run(kernels, z, grad, sizes, root, p, scale)
    check(results, reference(z, grad.astype(np.float64), sizes, root, p, np.ones(4)), dtype)
    assert (results[1][z == 0] == 0).all()


def test_any_split_of_the_range_gives_the_same_bits(kernels):
    z, grad = make(3000, (4, 2, 1), np.float32)
    z[7, 2] = 0
    arguments = ((4, 2, 1), 2.1, [2.2, 2.0, 1.0], [1.0, 2.0, 0.5])
    whole = run(kernels, z, grad, *arguments)
    for pieces in (2, 3, 5):
        for one, other in zip(whole, run(kernels, z, grad, *arguments, pieces=pieces)):
            np.testing.assert_array_equal(one, other)


def test_digamma(kernels):
    # psi(1) = -gamma, psi(1/2) = -gamma - 2 log 2, psi(10) = H_9 - gamma; the recurrence elsewhere.
    gamma = 0.57721566490153286
    for x, exact in ((1.0, -gamma), (0.5, -gamma - 2 * np.log(2)), (10.0, sum(1 / i for i in range(1, 10)) - gamma)):
        assert abs(kernels.digamma_of(x) - exact) < 4e-15
    for x in (0.01, 0.3, 2.5, 9.999, 10.5, 1e3, 1e8):
        assert abs(kernels.digamma_of(x + 1) - kernels.digamma_of(x) - 1 / x) < 4e-15 * max(1, 1 / x, np.log(x + 1))
    assert np.isnan(kernels.digamma_of(-1e9)) and np.isnan(kernels.digamma_of(np.nan))
