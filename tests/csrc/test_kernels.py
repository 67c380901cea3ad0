"""Every instruction level of the torch-free kernels against a float64 reference."""

import ctypes
import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from strucfast import reference
from strucfast.reference._activations import ACTIVATIONS, activate

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {
    "x86-64": set(),
    "x86-64-v3": {"avx2", "fma", "bmi2", "f16c"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
FLAGS = ["-std=c++17", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]
SHAPES = [
    (2, 6, 1, 3),
    (1, 1, 7, 1),
    (3, 8, 16, 2),
    (2, 34, 37, 17),
    (2, 5, 2300, 1),
    (3, 64, 64, 8),
    (1, 2100, 3, 700),
]


@functools.cache
def cpu_flags():
    try:
        return set(Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split())
    except (OSError, IndexError):
        return set()


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request, tmp_path_factory):
    compiler = os.environ.get("CXX", "g++")
    if platform.machine() != "x86_64":
        pytest.skip("the instruction levels are those of x86-64; run this on such a machine")
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip(f"no C++ compiler {compiler!r}: install g++ or set CXX")
    if not LEVELS[request.param] <= cpu_flags():
        pytest.skip(f"this CPU cannot run {request.param} code; run the test on one that can")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    kernel_files = (f"csrc/cpu/{name}.cpp" for name in ("adain", "group_norm_modulate", "modulate"))
    sources = ["tests/csrc/kernels.cpp", *kernel_files]
    command = [*compiler.split(), *FLAGS, "-DSF_NO_CLONES", f"-march={request.param}", "-Icsrc", *sources, "-o"]
    subprocess.run([*command, str(library)], cwd=ROOT, check=True)
    return ctypes.CDLL(str(library))


def pointer(array):
    # data_as keeps the array alive for as long as the pointer.
    return array.ctypes.data_as(ctypes.c_void_p)


def size(array):
    return ctypes.c_int64(array.size)


def suffix(dtype):
    return "double" if dtype == np.float64 else "float"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "which, function, low, high",
    [(0, np.exp, -87, 88), (1, np.expm1, -80, 80), (1, np.expm1, -0.1, 0.1), (2, np.log, 1e-30, 1e30),
     (2, np.log, 0.5, 2), (3, np.tanh, -10, 10), (3, np.tanh, -0.1, 0.1)],
)  # fmt: skip
def test_vector_math(kernels, dtype, which, function, low, high):
    x = np.random.default_rng(0).uniform(low, high, 200_003).astype(dtype)
    y = np.empty_like(x)
    getattr(kernels, f"math_{suffix(dtype)}")(which, pointer(x), pointer(y), size(x))
    truth = function(x.astype(np.longdouble))
    error = np.abs((y - truth) / np.where(truth == 0, 1, truth)).max()
    # 2 ulp; a double's reduction without fma adds a few bits near the ends of exp.
    assert error < (4 if dtype == np.float32 else 10) * np.finfo(dtype).eps


def test_edges_of_exp_and_log(kernels):
    x = np.array([np.inf, -np.inf, np.nan, 0, -1, 1000, -1000, 1], np.float32)
    y = np.empty_like(x)
    kernels.math_float(0, pointer(x), pointer(y), size(x))
    np.testing.assert_allclose(y, [np.inf, 0, np.nan, 1, np.exp(-1), np.inf, 0, np.e], rtol=3e-7)
    kernels.math_float(2, pointer(x), pointer(y), size(x))
    np.testing.assert_allclose(y[:5], [np.inf, np.nan, np.nan, -np.inf, np.nan])


def test_subnormals_survive(kernels):
    x = np.array([-88.0, -95.0, -103.0], np.float32)
    y = np.empty_like(x)
    kernels.math_float(0, pointer(x), pointer(y), size(x))
    np.testing.assert_allclose(y, np.exp(x.astype(np.float64)), rtol=0, atol=3e-45)
    assert y[2] != 0 and y[0] < np.finfo(np.float32).tiny
    # The library must not switch the process to flush-to-zero, as -ffast-math at link time would.
    assert np.float32(1e-40) * np.float32(0.5) != 0
    halves = np.arange(1, 0x400, dtype=np.uint16)
    wide = np.empty(halves.shape, np.float32)
    kernels.widen_halves(0, pointer(halves), pointer(wide), size(halves))
    np.testing.assert_array_equal(wide, halves.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 3e-15)])
@pytest.mark.parametrize("code", range(len(ACTIVATIONS)))
def test_activation(kernels, dtype, tolerance, code):
    x = np.concatenate([np.random.default_rng(1).uniform(-w, w, 20_001) for w in (0.1, 4, 40)]).astype(dtype)
    value, slope = np.empty_like(x), np.empty_like(x)
    function = getattr(kernels, f"activation_{suffix(dtype)}")
    function(code, pointer(x), pointer(value), pointer(slope), size(x))
    u = torch.from_numpy(x).double().requires_grad_()
    truth = activate(u, ACTIVATIONS[code])
    (derivative,) = torch.autograd.grad(truth.sum(), u)
    bound = tolerance * (1 + np.abs(truth.detach().numpy()))
    assert (np.abs(value - truth.detach().numpy()) <= bound).all()
    np.testing.assert_allclose(slope, derivative.numpy(), rtol=0, atol=2 * tolerance)
    edges = np.array([np.nan, np.inf, 1e30, -1e30], dtype)
    function(code, pointer(edges), pointer(value), pointer(slope), size(edges))
    assert np.isnan(value[0]) and np.isfinite(value[2:4]).all()
    assert value[1] == (1 if ACTIVATIONS[code] == "tanh" else np.inf)
    assert np.isfinite(slope[1:4]).all()


@pytest.mark.parametrize("is_bfloat16, dtype", [(1, torch.bfloat16), (0, torch.float16)])
def test_halves(kernels, is_bfloat16, dtype):
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = np.empty(bits.shape, np.float32)
    kernels.widen_halves(is_bfloat16, pointer(bits), pointer(wide), size(bits))
    truth = torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()
    np.testing.assert_array_equal(wide, truth)
    x = np.arange(0, 1 << 32, 4099, dtype=np.uint64).astype(np.uint32).view(np.float32)
    narrow = np.empty(x.shape, np.uint16)
    kernels.narrow_halves(is_bfloat16, pointer(x), pointer(narrow), size(x))
    back = torch.from_numpy(narrow.view(np.int16)).view(dtype)
    assert torch.equal(
        torch.nan_to_num(back.float(), nan=7.0), torch.nan_to_num(torch.from_numpy(x).to(dtype).float(), nan=7.0)
    )


def problem(shape, dtype, offset=0.0):
    samples, channels, pixels, groups = shape
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((samples, channels, pixels)) + offset).astype(dtype)
    grad = rng.standard_normal(x.shape).astype(dtype)
    parameters = [rng.standard_normal(s).astype(dtype) for s in ((channels,), (channels,), x.shape[:2], x.shape[:2])]
    return x, grad, parameters, groups


def laid_out(array, channels_last):
    return np.ascontiguousarray(array.swapaxes(1, 2)) if channels_last else array


def check(name, got, truth, scale, eps):
    assert np.isfinite(got).all(), name
    error = np.abs(got - truth).max()
    # Sums of thousands of terms and a group of few elements both cost some ulp of the largest term.
    assert error <= 64 * eps * scale, f"{name}: {error} > 64 * {eps} * {scale}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, -500.0])
def test_group_norm_modulate(kernels, dtype, channels_last, shape, offset):
    x, grad, parameters, groups = problem(shape, dtype, offset)
    code = (shape[1] + shape[2]) % len(ACTIVATIONS)
    tensors = [torch.from_numpy(t).double().requires_grad_() for t in (x, *parameters)]
    truth = reference.group_norm_modulate(tensors[0], groups, *tensors[1:], activation=ACTIVATIONS[code])
    gradients = torch.autograd.grad(truth, tensors, torch.from_numpy(grad).double())
    laid = laid_out(x, channels_last)
    y = np.full_like(laid, np.nan)
    mean, rstd = (np.full((shape[0], groups), np.nan, dtype) for _ in range(2))
    outputs = [np.full_like(t, np.nan) for t in (laid, *parameters)]
    kernels.group_norm_modulate(
        int(dtype == np.float64), (ctypes.c_int64 * 4)(*shape), int(channels_last), code, ctypes.c_double(1e-5),
        pointer(laid), *map(pointer, parameters), pointer(y), pointer(mean), pointer(rstd),
        pointer(laid_out(grad, channels_last)), (ctypes.c_void_p * 5)(*(t.ctypes.data for t in outputs)),
    )  # fmt: skip
    eps = np.finfo(dtype).eps
    if offset and dtype == np.float64:
        # The float64 truth itself loses |mean| / deviation.
        eps *= 500
    check("y", y, laid_out(truth.detach().numpy(), channels_last), np.abs(truth.detach().numpy()).max(), eps)
    terms = np.abs(grad).max() * max(1, rstd.max())
    for name, got, want in zip(("dx", "dweight", "dbias", "dscale", "dshift"), outputs, gradients):
        want = want.numpy()
        want = laid_out(want, channels_last) if name == "dx" else want
        check(name, got, want, max(np.abs(want).max(), terms), eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_modulate(kernels, dtype, channels_last, shape):
    x, grad, (_, _, scale, shift), _ = problem(shape, dtype)
    tensors = [torch.from_numpy(t).double().requires_grad_() for t in (x, scale, shift)]
    truth = reference.modulate(*tensors)
    gradients = torch.autograd.grad(truth, tensors, torch.from_numpy(grad).double())
    laid = laid_out(x, channels_last)
    y = np.full_like(laid, np.nan)
    outputs = [np.full_like(t, np.nan) for t in (laid, scale, shift)]
    kernels.modulate(
        int(dtype == np.float64), (ctypes.c_int64 * 3)(*shape[:3]), int(channels_last), pointer(laid), pointer(scale),
        pointer(shift), pointer(y), pointer(laid_out(grad, channels_last)),
        (ctypes.c_void_p * 3)(*(t.ctypes.data for t in outputs)),
    )  # fmt: skip
    eps = np.finfo(dtype).eps
    check("y", y, laid_out(truth.detach().numpy(), channels_last), np.abs(truth.detach().numpy()).max(), eps)
    for name, got, want in zip(("dx", "dscale", "dshift"), outputs, gradients):
        want = laid_out(want.numpy(), channels_last) if name == "dx" else want.numpy()
        check(name, got, want, max(1, np.abs(want).max()), eps)


def from_line(array, elements):
    """A copy that begins ``elements`` after the begin of a cache line."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    begin = -memory.ctypes.data % 64 + elements * array.itemsize
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


# 32 MiB and more goes past the caches: rows on cache lines, rows across them, and memory that does not begin with one.
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape, elements", [((2, 64, 65536), 0), ((2, 60, 70001), 0), ((2, 64, 65536), 3)])
def test_streamed_modulate(kernels, channels_last, shape, elements):
    rng = np.random.default_rng(4)
    laid = (shape[0], shape[2], shape[1]) if channels_last else shape
    x, grad = (rng.random(laid, np.float32) - np.float32(0.5) for _ in range(2))
    scale, shift = (rng.standard_normal(shape[:2]).astype(np.float32) for _ in range(2))
    y, dx = (from_line(np.full_like(x, np.nan), elements) for _ in range(2))
    outputs = [dx, np.full_like(scale, np.nan), np.full_like(scale, np.nan)]
    kernels.modulate(
        0, (ctypes.c_int64 * 3)(*shape), int(channels_last), pointer(x), pointer(scale), pointer(shift), pointer(y),
        pointer(grad), (ctypes.c_void_p * 3)(*(t.ctypes.data for t in outputs)),
    )  # fmt: skip
    beside = (slice(None), None) if channels_last else (..., None)
    eps = np.finfo(np.float32).eps
    check("y", y, scale[beside] * x + shift[beside], 5, eps)
    check("dx", dx, scale[beside] * grad, 5, eps)
    pixels = 1 if channels_last else 2
    for name, got, terms in (("dscale", outputs[1], grad * x), ("dshift", outputs[2], grad)):
        want = terms.sum(axis=pixels, dtype=np.float64)
        check(name, got, want, np.abs(want).max(), eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset, maps", [(0.0, 0), (0.0, 1), (0.0, 2), (0.0, 3), (-500.0, 0)])
def test_adain(kernels, dtype, channels_last, shape, offset, maps):
    x, grad, (_, _, scale, shift), _ = problem(shape, dtype, offset)
    rng = np.random.default_rng(3)
    scale, shift = (
        rng.standard_normal(x.shape).astype(dtype) if maps >> i & 1 else t for i, t in enumerate((scale, shift))
    )
    tensors = [torch.from_numpy(t).double().requires_grad_() for t in (x, scale, shift)]
    truth = reference.adain(*tensors)
    gradients = torch.autograd.grad(truth, tensors, torch.from_numpy(grad).double())

    def lay(array):
        return laid_out(array, channels_last) if array.ndim == 3 else array

    arrays = [lay(t) for t in (x, scale, shift, grad)]
    y, outputs = np.full_like(arrays[0], np.nan), [np.full_like(t, np.nan) for t in arrays[:3]]
    mean, rstd = (np.full(shape[:2], np.nan, dtype) for _ in range(2))
    kernels.adain(
        int(dtype == np.float64), (ctypes.c_int64 * 3)(*shape[:3]), int(channels_last), maps, ctypes.c_double(1e-5),
        *map(pointer, arrays[:3]), pointer(y), pointer(mean), pointer(rstd), pointer(arrays[3]),
        (ctypes.c_void_p * 3)(*(t.ctypes.data for t in outputs)),
    )  # fmt: skip
    # The first pixel is subtracted in both directions: float32 loses nothing to an offset, which its truth does.
    eps = np.finfo(dtype).eps * (500 if offset and dtype == np.float64 else 1)
    check("y", y, lay(truth.detach().numpy()), np.abs(truth.detach().numpy()).max(), eps)
    terms = np.abs(grad).max() * max(1, rstd.max())
    for name, got, want in zip(("dx", "dscale", "dshift"), outputs, gradients):
        want = lay(want.numpy())
        check(name, got, want, max(np.abs(want).max(), terms), eps)


@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_reaches_every_result_of_its_group(kernels, channels_last):
    shape = (2, 8, 16, 2)
    x, grad, parameters, _ = problem(shape, np.float32)
    x[1, 2, 3] = np.nan
    laid = laid_out(x, channels_last)
    y = np.zeros_like(laid)
    mean, rstd = np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)
    outputs = [np.zeros_like(t) for t in (laid, *parameters)]
    kernels.group_norm_modulate(
        0, (ctypes.c_int64 * 4)(*shape), int(channels_last), 1, ctypes.c_double(1e-5),
        pointer(laid), *map(pointer, parameters), pointer(y), pointer(mean), pointer(rstd),
        pointer(laid_out(grad, channels_last)), (ctypes.c_void_p * 5)(*(t.ctypes.data for t in outputs)),
    )  # fmt: skip
    bad = np.zeros(shape[:2], bool)
    bad[1, :4] = True
    for result in (y, outputs[0]):
        per_channel = result.swapaxes(1, 2) if channels_last else result
        assert (np.isnan(per_channel).all(axis=2) == bad).all() and (np.isnan(per_channel).any(axis=2) == bad).all()
    assert (np.isnan(outputs[3]) == bad).all() and np.isfinite(outputs[4]).all()
    assert (np.isnan(outputs[1]) == bad.any(axis=0)).all() and (np.isnan(outputs[2]) == bad.any(axis=0)).all()
