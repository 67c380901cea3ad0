"""The torch-free Str-Tfm kernels at every x86-64 level that this CPU has, against float64 numpy."""

import ctypes
import itertools

import numpy as np
import pytest
from helpers.isa import LEVELS, compile_level

ACTIVATIONS = ("identity", "mish", "silu", "relu", "elu", "tanh")
SCALE_MAPS = ("exp", "exp_half", "softplus_shift", "sigmoid2", "one_plus")
SOFTPLUS_SHIFT = np.log(np.expm1(1.0))

WRAPPER = """
#include "csrc/cpu/str_tfm.h"
#include <vector>
using namespace strucfast;
#define WRAP(NAME, T)                                                                                               \\
  extern "C" void forward_##NAME(const int64_t* dims, const int64_t* widths, const T* u, const int64_t* strides,    \\
                                 const T* const* weights, const T* const* biases, T* scale, T* shift, T* saved,     \\
                                 int64_t pieces) {                                                                  \\
    const StrTfmShape shape{dims[0], dims[1], dims[2], widths};                                                     \\
    const StrTfmForward<T> op{shape, int(dims[3]), int(dims[4]), u, {strides[0], strides[1], strides[2]},           \\
                              weights, biases, scale, shift, saved};                                                \\
    std::vector<T> scratch(str_tfm_forward_scratch(shape), T(1) / T(0) - T(1) / T(0));                              \\
    const int64_t units = shape.num_variables * shape.num_tiles();                                                  \\
    for (int64_t i = 0; i < pieces; ++i)                                                                            \\
      str_tfm_forward(op, units * i / pieces, units * (i + 1) / pieces, scratch.data());                            \\
  }                                                                                                                 \\
  extern "C" void backward_##NAME(const int64_t* dims, const int64_t* widths, const T* u, const int64_t* strides,   \\
                                  const T* const* weights, const T* scale, const T* saved, const T* grad_scale,     \\
                                  const T* grad_shift, T* du, T* const* dweights, T* const* dbiases,                \\
                                  int64_t pieces) {                                                                 \\
    const StrTfmShape shape{dims[0], dims[1], dims[2], widths};                                                     \\
    const int64_t channels = widths[dims[2]] / 2, chunks = str_tfm_num_chunks(shape);                               \\
    std::vector<T> scratch(str_tfm_backward_scratch(shape), T(1) / T(0) - T(1) / T(0));                             \\
    std::vector<T> partials((chunks - 1) * dims[1] * shape.num_parameters(), T(1) / T(0) - T(1) / T(0));            \\
    const StrTfmBackward<T> op{shape, int(dims[3]), int(dims[4]), grad_scale, {dims[1] * channels, channels},       \\
                               grad_shift, {dims[1] * channels, channels}, u, {strides[0], strides[1], strides[2]}, \\
                               weights, scale, saved, du, dweights, dbiases, partials.data()};                      \\
    const int64_t units = dims[1] * chunks;                                                                         \\
    for (int64_t i = 0; i < pieces; ++i)                                                                            \\
      str_tfm_backward(op, units * i / pieces, units * (i + 1) / pieces, scratch.data());                           \\
    if (dweights != nullptr) str_tfm_reduce(op, 0, dims[1]);                                                        \\
  }
WRAP(f32, float)
WRAP(f64, double)
"""


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request, tmp_path_factory):
    return compile_level(
        request.param, WRAPPER, ("str_tfm.cpp",), tmp_path_factory.mktemp("str_tfm"), elsewhere="the op tests cover"
    )


def mish(x):
    softplus = np.logaddexp(0.0, x)
    t = np.tanh(softplus)
    return x * t, t + x * (1 - t * t) * np.exp(x - softplus)


def activate(name, x):
    """Value and slope."""
    sigmoid = np.exp(-np.logaddexp(0.0, -x))
    return {
        "identity": lambda: (x, np.ones_like(x)),
        "mish": lambda: mish(x),
        "silu": lambda: (x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))),
        "relu": lambda: (np.maximum(x, 0), (x > 0).astype(x.dtype)),
        "elu": lambda: (np.where(x > 0, x, np.expm1(np.minimum(x, 0))), np.exp(np.minimum(x, 0))),
        "tanh": lambda: (np.tanh(x), 1 - np.tanh(x) ** 2),
    }[name]()


def map_scale(name, a):
    """Value and slope."""
    shifted = a + SOFTPLUS_SHIFT
    sigmoid = np.exp(-np.logaddexp(0.0, -a))
    return {
        "exp": lambda: (np.exp(a), np.exp(a)),
        "exp_half": lambda: (np.exp(a / 2), np.exp(a / 2) / 2),
        "softplus_shift": lambda: (np.logaddexp(0.0, shifted), np.exp(-np.logaddexp(0.0, -shifted))),
        "sigmoid2": lambda: (2 * sigmoid, 2 * sigmoid * (1 - sigmoid)),
        "one_plus": lambda: (1 + a, np.ones_like(a)),
    }[name]()


def reference(u, weights, biases, grad_scale, grad_shift, activation, scale_map):
    """Everything in float64; u (N, d, k)."""
    hidden, pre, slopes = [u.transpose(1, 0, 2)], [], []
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if layer > 0:
            value, slope = activate(activation, pre[-1])
            hidden.append(value)
            slopes.append(slope)
        pre.append(hidden[-1] @ weight.transpose(0, 2, 1) + bias[:, None])
    logits, shift = np.split(pre[-1].transpose(1, 0, 2), 2, axis=-1)
    scale, slope = map_scale(scale_map, logits)
    delta = np.concatenate([grad_scale * slope, grad_shift], axis=-1).transpose(1, 0, 2)
    dweights, dbiases = [], []
    for layer in reversed(range(len(weights))):
        dweights.insert(0, delta.transpose(0, 2, 1) @ hidden[layer])
        dbiases.insert(0, delta.sum(axis=1))
        delta = delta @ weights[layer] * (slopes[layer - 1] if layer > 0 else 1.0)
    saved = np.concatenate([np.zeros((u.shape[1], u.shape[0], 0)), *pre[:-1]], axis=-1)
    return [scale, shift, saved, delta.transpose(1, 0, 2), *dweights, *dbiases]


def pointers(arrays):
    return (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])


def run(library, u, weights, biases, grad_scale, grad_shift, activation, scale_map, *, pieces=1, save=True):
    suffix = "f32" if u.dtype == np.float32 else "f64"
    n, d, _ = u.shape
    widths = (ctypes.c_int64 * (len(weights) + 1))(u.shape[2], *[w.shape[1] for w in weights])
    dims = (ctypes.c_int64 * 5)(n, d, len(weights), ACTIVATIONS.index(activation), SCALE_MAPS.index(scale_map))
    strides = (ctypes.c_int64 * 3)(*[s // u.itemsize for s in u.strides])

    def poisoned(*shape):
        return np.full(shape, np.nan, u.dtype)

    scale, shift, du = poisoned(*grad_scale.shape), poisoned(*grad_scale.shape), poisoned(*u.shape)
    saved = poisoned(d, n, sum(widths[1:-1]))
    dweights, dbiases = [poisoned(*w.shape) for w in weights], [poisoned(*b.shape) for b in biases]
    count = ctypes.c_int64(pieces)
    common = [dims, widths, ctypes.c_void_p(u.ctypes.data), strides, pointers(weights)]
    addresses = [ctypes.c_void_p(a.ctypes.data) for a in (scale, shift, saved, grad_scale, grad_shift, du)]
    to_scale, to_shift, to_saved, from_grad_scale, from_grad_shift, to_du = addresses
    forward, backward = getattr(library, f"forward_{suffix}"), getattr(library, f"backward_{suffix}")
    forward(*common, pointers(biases), to_scale, to_shift, to_saved if save else None, count)
    if not save:
        return [scale, shift]
    grads = (from_grad_scale, from_grad_shift, to_du, pointers(dweights), pointers(dbiases))
    backward(*common, to_scale, to_saved, *grads, count)
    return [scale, shift, saved, du, *dweights, *dbiases]


def make_case(n, d, widths, dtype, seed=0):
    rng = np.random.default_rng(seed)
    weights = [(rng.standard_normal((d, o, i)) / np.sqrt(i)).astype(dtype) for i, o in itertools.pairwise(widths)]
    biases = [(0.3 * rng.standard_normal((d, o))).astype(dtype) for o in widths[1:]]
    # A transposed view: the kernel must honour the strides of u.
    u = rng.standard_normal((widths[0], d, n)).astype(dtype).transpose(2, 1, 0)
    grads = [rng.standard_normal((n, d, widths[-1] // 2)).astype(dtype) for _ in range(2)]
    return u, weights, biases, *grads


def check(results, case, activation, scale_map):
    u, weights, biases, grad_scale, grad_shift = case
    exact = reference(
        u.astype(np.float64),
        [w.astype(np.float64) for w in weights],
        [b.astype(np.float64) for b in biases],
        grad_scale.astype(np.float64),
        grad_shift.astype(np.float64),
        activation,
        scale_map,
    )
    # A few hundred terms a sum, four layers deep, then exp: some tens of eps of the largest value.
    tolerance = 64 * np.finfo(u.dtype).eps
    assert len(results) in (2, len(exact))
    for got, want in zip(results, exact[: len(results)], strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max(initial=0.0)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "n, d, widths",
    [
        (128, 3, (1, 64, 64, 64, 128)),
        (67, 2, (16, 64, 128, 256)),
        (1, 1, (1, 1, 1, 2)),
        (5, 2, (3, 8)),
        (131, 2, (7, 17, 33, 2)),
        (200, 1, (2, 64, 98)),
    ],
)
def test_sizes(kernels, n, d, widths, dtype):
    case = make_case(n, d, widths, dtype)
    check(run(kernels, *case, "mish", "exp"), case, "mish", "exp")
    check(run(kernels, *case, "mish", "exp", save=False), case, "mish", "exp")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(kernels, activation, dtype):
    case = make_case(33, 2, (2, 64, 21, 34), dtype)
    check(run(kernels, *case, activation, "one_plus"), case, activation, "one_plus")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale_map", SCALE_MAPS)
def test_scale_maps(kernels, scale_map, dtype):
    case = make_case(33, 2, (2, 64, 34), dtype)
    check(run(kernels, *case, "silu", scale_map), case, "silu", scale_map)


@pytest.mark.parametrize("n, d", [(300, 3), (1000, 1), (64, 5)])
def test_any_split_of_the_range_gives_the_same_bits(kernels, n, d):
    case = make_case(n, d, (1, 64, 48, 128), np.float32)
    whole = run(kernels, *case, "mish", "exp")
    for pieces in (2, 3, 5):
        for one, other in zip(whole, run(kernels, *case, "mish", "exp", pieces=pieces)):
            np.testing.assert_array_equal(one, other)
