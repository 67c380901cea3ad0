"""The torch-free aggregate-density kernels at every x86-64 level that this CPU has, against float64 numpy."""

import ctypes

import numpy as np
import pytest
from helpers.isa import LEVELS, compile_level

WRAPPER = """
#include "csrc/cpu/aggregate.h"
#include "csrc/cpu/lanes.h"
#include <vector>
using namespace strucfast;
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
template <typename T>
void run(const int64_t* dims, const int64_t* order, const int64_t* runs, const double* logs, const T* const* in,
         const T* const* grads, T* const* out, int64_t pieces) {
  const T nan = T(1) / T(0) - T(1) / T(0);
  Aggregate<T> op{};
  op.samples = dims[0]; op.posteriors = dims[1]; op.dims = dims[2]; op.groups = dims[3]; op.offset = dims[4];
  op.order = order; op.runs = runs; op.log_own = logs[0]; op.log_other = logs[1];
  op.z = in[0]; op.mean = in[1]; op.logvar = in[2];
  // Column-major inputs: the kernel must honour strides.
  op.z_strides[0] = op.mean_strides[0] = op.logvar_strides[0] = 1;
  op.z_strides[1] = op.samples; op.mean_strides[1] = op.logvar_strides[1] = op.posteriors;
  op.joint = out[0]; op.marginal = out[1]; op.grouped = out[2];
  std::vector<T> packed(aggregate_packed_size(op), nan);
  op.packed = packed.data();
  aggregate_pack(op);
  const auto ranges = [&](int64_t units, int64_t size, auto call) {
    for (int64_t i = 0; i < pieces; ++i) {
      std::vector<T> scratch(size, nan);
      call(op, units * i / pieces, units * (i + 1) / pieces, scratch.data());
    }
  };
  ranges((op.samples + kAggregateTile - 1) / kAggregateTile, aggregate_forward_scratch(op), aggregate_forward<T>);
  op.grad_joint = grads[0]; op.grad_marginal = grads[1]; op.grad_grouped = op.groups > 0 ? grads[2] : nullptr;
  op.grad_joint_stride = 1;
  op.grad_marginal_strides[0] = op.dims; op.grad_marginal_strides[1] = 1;
  op.grad_grouped_strides[0] = op.groups; op.grad_grouped_strides[1] = 1;
  op.dz = out[3]; op.dmean = out[4]; op.dlogvar = out[5];
  std::vector<T> rows(op.samples * op.row_size(), nan);
  std::vector<T> partials(aggregate_num_chunks(op) * op.samples * op.dims, nan);
  op.packed_rows = rows.data(); op.partials = partials.data();
  aggregate_pack_rows(op, 0, op.samples);
  ranges(aggregate_num_chunks(op), aggregate_backward_scratch(op), aggregate_backward<T>);
  aggregate_reduce(op, 0, op.samples);
}
#define WRAP(NAME, T)                                                                                             \\
  extern "C" void run_##NAME(const int64_t* dims, const int64_t* order, const int64_t* runs, const double* logs,  \\
                             const T* const* in, const T* const* grads, T* const* out, int64_t pieces) {          \\
    run<T>(dims, order, runs, logs, in, grads, out, pieces);                                                      \\
  }                                                                                                               \\
  extern "C" void exp2_##NAME(const T* x, T* y, int64_t count) {                                                  \\
    using L = Lanes<T, kBytes, 1>;                                                                                \\
    for (int64_t i = 0; i < count; i += L::kLanes) store<L>(y + i, exp2_lanes<L>(load<L>(x + i)));                \\
  }                                                                                                               \\
  extern "C" void sums_##NAME(const T* x, T* y) {                                                                 \\
    using L = Lanes<T, kBytes, 1>;                                                                                \\
    sum_lanes_of_four<L>(reinterpret_cast<const typename L::Vec*>(x), y);                                         \\
  }
WRAP(f32, float)
WRAP(f64, double)
extern "C" int64_t vector_bytes() { return kBytes; }
"""


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request, tmp_path_factory):
    return compile_level(
        request.param, WRAPPER, ("aggregate.cpp",), tmp_path_factory.mktemp("aggregate"), elsewhere="the op tests cover"
    )


def pointers(arrays):
    return (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])


def suffix(dtype):
    return "f32" if dtype == np.float32 else "f64"


def make_case(samples, posteriors, dims, groups, dtype, seed=0):
    rng = np.random.default_rng(seed)
    z, mean, logvar = (rng.standard_normal((n, dims)).astype(dtype) for n in (samples, posteriors, posteriors))
    shapes = ((samples,), (samples, dims), (samples, len(groups)))
    return z, mean, (0.5 * logvar).astype(dtype), [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def run(library, case, groups, logs, offset, pieces=1):
    z, mean, logvar, grads = case
    dtype, dims = z.dtype, z.shape[1]
    order = np.array([d for g in groups for d in g] or range(dims), dtype=np.int64)
    runs = np.array([0, *np.cumsum([len(g) for g in groups] or [dims])], dtype=np.int64)
    sizes = np.array([len(z), len(mean), dims, len(groups), offset], dtype=np.int64)
    columns = [np.asfortranarray(a) for a in (z, mean, logvar)]
    shapes = [(len(z),), z.shape, (len(z), len(groups)), z.shape, mean.shape, mean.shape]
    out = [np.full(shape, np.nan, dtype) for shape in shapes]
    address = [ctypes.c_void_p(a.ctypes.data) for a in (sizes, order, runs, np.array(logs))]
    function = getattr(library, f"run_{suffix(dtype)}")
    function(*address, pointers(columns), pointers(grads), pointers(out), ctypes.c_int64(pieces))
    return out


def logsumexp(x):
    top = x.max(axis=1, keepdims=True)
    return (top + np.log(np.exp(x - top).sum(axis=1, keepdims=True))).squeeze(1)


def reference(case, groups, logs, offset):
    z, mean, logvar, grads = [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in case]
    log_w = np.full((len(z), len(mean)), logs[1])
    log_w[np.arange(len(z)), np.arange(len(z)) + offset] = logs[0]
    inverse = np.exp(-0.5 * logvar)
    u = (z[:, None] - mean) * inverse
    density = -0.5 * (u * u + logvar + np.log(2 * np.pi))
    partitions = [[list(range(z.shape[1]))], [[d] for d in range(z.shape[1])], groups]
    values, weight = [], np.zeros_like(density)
    for partition, grad in zip(partitions, grads):
        grad, columns = grad.astype(np.float64).reshape(len(z), -1), []
        for number, group in enumerate(partition):
            x = log_w + density[:, :, group].sum(axis=2)
            columns.append(logsumexp(x))
            weight[:, :, group] += (grad[:, number, None] * np.exp(x - columns[-1][:, None]))[:, :, None]
        values.append(np.stack(columns, axis=1) if columns else np.zeros((len(z), 0)))
    values[0] = values[0][:, 0]
    pull = weight * u * inverse
    return [*values, -pull.sum(axis=1), pull.sum(axis=0), 0.5 * (weight * (u * u - 1)).sum(axis=0)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "samples, posteriors, dims, groups, offset",
    [
        (67, 67, 7, [], 0),
        (5, 40, 3, [[2, 0], [1]], 11),
        (1, 1, 1, [], 0),
        (33, 300, 10, [[0, 9], [1, 2, 3], [8, 7, 6, 5, 4]], 267),
        (3, 600, 5, [[4], [3], [2], [1], [0]], 0),
        (130, 140, 33, [list(range(33))], 3),
        # Chunks of more than one block of posteriors.
        (3, 4500, 2, [], 0),
    ],
)
def test_values_and_gradients(kernels, samples, posteriors, dims, groups, offset, dtype):
    case = make_case(samples, posteriors, dims, groups, dtype)
    logs = (-4.0, -5.5)
    found = run(kernels, case, groups, logs, offset)
    # Sums of up to 4500 terms: some tens of eps of the largest value.
    tolerance = 64 * np.finfo(dtype).eps
    for got, want in zip(found, reference(case, groups, logs, offset), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max(initial=0.0)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_samples_far_from_every_posterior(kernels, dtype):
    """Every density is below what exp2 can hold, so the sums need the maximum first."""
    z, mean, logvar, grads = make_case(35, 50, 3, [[0, 1, 2]], dtype)
    case = z + dtype(500), mean, logvar, grads
    found = run(kernels, case, [[0, 1, 2]], (-4.0, -5.5), 7)
    for got, want in zip(found[:3], reference(case, [[0, 1, 2]], (-4.0, -5.5), 7)):
        assert want.max() < -10_000
        np.testing.assert_allclose(got, want, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_split_of_the_ranges_gives_the_same_bits(kernels, dtype):
    groups = [[0, 3], [1, 2, 4]]
    case = make_case(200, 600, 5, groups, dtype)
    whole = run(kernels, case, groups, (-4.0, -5.5), 100)
    for pieces in (2, 3, 7):
        for one, other in zip(whole, run(kernels, case, groups, (-4.0, -5.5), 100, pieces)):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp2_over_its_whole_range(kernels, dtype):
    limits = np.finfo(dtype)
    x = np.linspace(limits.minexp, 20, 1 << 16).astype(dtype)
    x[:16] = [0, -0.0, 1, -1, 0.5, -0.5, 1e-8, -1e-8, 3, -7, limits.minexp, -2.5, 0.99999, -30, 10.25, -1e-3]
    y = np.empty_like(x)
    function = getattr(kernels, f"exp2_{suffix(dtype)}")
    function(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_int64(len(x)))
    exact = np.exp2(x.astype(np.longdouble))
    assert float((np.abs(y - exact) / exact).max()) < (2.5e-7 if dtype == np.float32 else 4e-15)
    assert (y[:4] == [1, 1, 2, 0.5]).all()
    edge = np.full(16, -np.inf, dtype)
    edge[1:4] = [np.nan, -1e30, limits.min]
    function(ctypes.c_void_p(edge.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_int64(16))
    assert np.isnan(y[1]) and (y[[0, 2, 3, 4]] == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_four_vectors(kernels, dtype):
    lanes = kernels.vector_bytes() // np.dtype(dtype).itemsize
    x = np.arange(1.0, 4 * lanes + 1).reshape(4, lanes) ** 2
    y = np.full(4, np.nan, dtype)
    x = x.astype(dtype)
    getattr(kernels, f"sums_{suffix(dtype)}")(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data))
    np.testing.assert_array_equal(y, x.sum(axis=1))
