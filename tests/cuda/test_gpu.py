"""What only a GPU shows: capture, streams, memory, sizes beyond the emulator's patience. Triton and CUDA C++ alike.

Values, gradients, dtypes, layouts, poisoned memory and determinism on the op's samples are in
tests/ops/test_contract.py, which runs on the GPU as well.
"""

import itertools

import numpy as np
import pytest
import torch

import strucfast as sf
from strucfast import _native
from strucfast.metrics import _boosting, _boosting_device, _histogram
from strucfast.ops import _registry

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device: run `make gpu-test` on one", allow_module_level=True)

pytestmark = pytest.mark.gpu
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# A few roundings of the dtype; the sums of gradients over 4096 pixels get the square root of that more.
BOUND = {torch.float32: 4e-6, torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3, torch.float64: 1e-13}


@pytest.fixture(params=("triton", "cuda"))
def backend(request):
    op = getattr(request.node, "callspec", None) and request.node.callspec.params.get("op")
    if op is not None and request.param not in _registry.get(op).order["cuda"]:
        pytest.skip(f"{op} has no {request.param} kernel by design; its order is {_registry.get(op).order['cuda']}")
    reason = _native.missing(request.param)
    # On a machine with a GPU a missing half is a failure, not a reason to skip.
    assert reason is None, f"{request.param}: {reason}"
    with sf.use_backend(request.param):
        yield request.param


def random(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda", dtype=torch.float64).to(dtype)


def modulate_case(shape, dtype, layout):
    x = random(*shape, dtype=dtype).to(memory_format=layout)
    return [x, *(random(*shape[:2], dtype=dtype, seed=s) for s in (1, 2))], sf.ops.modulate, sf.reference.modulate


def norm_case(shape, dtype, layout, groups=8):
    x = (random(*shape, dtype=dtype) + 2).to(memory_format=layout)
    parameters = [random(shape[1], dtype=dtype, seed=s) for s in (1, 2)] + [
        random(*shape[:2], dtype=dtype, seed=s) for s in (3, 4)
    ]

    def ours(x, *rest):
        return sf.ops.group_norm_modulate(x, groups, *rest)

    def truth(x, *rest):
        return sf.reference.group_norm_modulate(x, groups, *rest)

    return [x, *parameters], ours, truth


def adain_case(shape, dtype, layout):
    x = (random(*shape, dtype=dtype) + 2).to(memory_format=layout)
    return [x, *(random(*shape[:2], dtype=dtype, seed=s) for s in (1, 2))], sf.ops.adain, sf.reference.adain


CASES = {"modulate": modulate_case, "group_norm_modulate": norm_case, "adain": adain_case}


def run(function, tensors, upstream):
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def check(found, truth, dtype):
    for i, (value, exact) in enumerate(zip(found, truth)):
        exact = exact.double()
        scale = max(1.0, float(exact.abs().max()))
        error = float((value.double() - exact).abs().max())
        assert error <= BOUND[dtype] * scale, f"output {i}: {error} at scale {scale}"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", (4, 7, 16, 33, 64))
@pytest.mark.parametrize("op", CASES)
def test_paper_sizes_against_float64(op, size, dtype, layout, backend):
    tensors, ours, truth = CASES[op]((16, 64, size, size), dtype, layout)
    upstream = random(*tensors[0].shape, dtype=dtype, seed=9).to(memory_format=layout)
    exact = run(truth, [t.double() for t in tensors], upstream.double())
    found = run(ours, tensors, upstream)
    check(found, exact, dtype)
    assert found[0].is_contiguous(memory_format=layout) and found[1].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("groups", (4, 1))
def test_groups_larger_than_shared_memory(groups, dtype, layout, backend):
    """16 and 64 channels of 64 x 64: 256 KiB and 1 MiB of float32."""
    tensors, ours, truth = norm_case((4, 64, 64, 64), dtype, layout, groups)
    upstream = random(4, 64, 64, 64, dtype=dtype, seed=9).to(memory_format=layout)
    check(run(ours, tensors, upstream), run(truth, [t.double() for t in tensors], upstream.double()), dtype)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_more_than_2_to_the_31_elements(layout, backend):
    """Index arithmetic in 64 bits; a sample of the output is compared."""
    shape = (2, 64, 4100, 4096)
    if torch.cuda.mem_get_info()[0] < 6 * 2 * shape[1] * 4100 * 4096 * 2:
        pytest.skip("needs 13 GB of free GPU memory: run on a card that has them")
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(memory_format=layout)
    scale, shift = random(2, 64, dtype=torch.bfloat16), random(2, 64, dtype=torch.bfloat16, seed=1)
    y = sf.ops.modulate(x, scale, shift)
    for n, c, h in ((0, 0, 0), (1, 63, 4099), (1, 31, 2050)):
        exact = scale[n, c].double() * x[n, c, h].double() + shift[n, c].double()
        assert float((y[n, c, h].double() - exact).abs().max()) < 0.1


@pytest.mark.parametrize("op", CASES)
def test_captured_forward_and_backward_follow_new_inputs(op, backend):
    tensors, ours, _ = CASES[op]((8, 64, 16, 16), torch.float32, torch.channels_last)
    upstream = random(8, 64, 16, 16, seed=9)
    leaves = [t.detach().clone().requires_grad_() for t in tensors]

    def step():
        output = ours(*leaves)
        return [output, *torch.autograd.grad(output, leaves, upstream)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(0.5).add_(0.25)
    graph.replay()
    for a, b in zip(captured, run(ours, leaves, upstream)):
        assert torch.equal(a.detach(), b)


def test_captured_str_tfm(backend):
    u = random(128, 12, 1)
    weights = [random(12, o, i, seed=i) / i**0.5 for i, o in ((1, 64), (64, 64), (64, 128))]
    biases = [random(12, o, seed=o) for o in (64, 64, 128)]
    with torch.no_grad():
        sf.ops.str_tfm(u, weights, biases)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            captured = sf.ops.str_tfm(u, weights, biases)
        u.mul_(-0.5)
        graph.replay()
        for a, b in zip(captured, sf.ops.str_tfm(u, weights, biases)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("layers", ((1, 64, 64, 64, 128), (2, 64, 128, 256, 256), (3, 1500, 8)), ids=str)
@pytest.mark.parametrize("samples", (1, 33, 128, 1000))
def test_str_tfm_against_float64(samples, layers, backend):
    u = random(samples, 12, layers[0])
    weights = [random(12, o, i, seed=i) / i**0.5 for i, o in itertools.pairwise(layers)]
    biases = [random(12, o, seed=o) / 4 for o in layers[1:]]
    upstream = [random(samples, 12, layers[-1] // 2, seed=s) for s in (5, 6)]
    count = len(weights)

    def gradients(function, tensors, grads):
        leaves = [t.detach().requires_grad_() for t in tensors]
        outputs = function(leaves[0], leaves[1 : 1 + count], leaves[1 + count :])
        return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, grads)]

    tensors = [u, *weights, *biases]
    exact = gradients(sf.reference.str_tfm, [t.double() for t in tensors], [g.double() for g in upstream])
    for i, (value, truth) in enumerate(zip(gradients(sf.ops.str_tfm, tensors, upstream), exact)):
        # Chains of products of length up to 1500 in float32.
        torch.testing.assert_close(
            value.double(), truth, rtol=0, atol=4e-5 * max(1.0, float(truth.abs().max())), msg=f"output {i}"
        )


@pytest.mark.parametrize("op", CASES)
def test_runs_on_the_current_stream(op, backend):
    """The input is written late on a side stream; a kernel on any other stream would read it too early."""
    tensors, ours, truth = CASES[op]((8, 64, 32, 32), torch.float32, torch.contiguous_format)
    late = tensors[0].clone()
    ours(*tensors)
    torch.cuda.synchronize()
    tensors[0].zero_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        tensors[0].copy_(late)
        y = ours(*tensors)
    torch.cuda.synchronize()
    check([y], [truth(late.double(), *(t.double() for t in tensors[1:]))], torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("op", CASES)
def test_no_hidden_copies(op, layout, backend):
    """The forward allocates its outputs and, for the norms, two statistics per group: no copy of x."""
    tensors, ours, _ = CASES[op]((16, 64, 32, 32), torch.float32, layout)
    bank = random(16, 3, 64)
    tensors[-2:] = [bank[:, 0], bank[:, 2]]
    with torch.no_grad():
        ours(*tensors)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = ours(*tensors)
        torch.cuda.synchronize()
    # Statistics and slices of the bank take some KiB; x would be 4 MiB.
    assert torch.cuda.max_memory_allocated() - before <= y.numel() * 4 + 32768


@pytest.mark.parametrize("op", CASES)
def test_the_same_bits_every_time(op, backend):
    tensors, ours, _ = CASES[op]((64, 64, 64, 64), torch.float32, torch.channels_last)
    upstream = random(64, 64, 64, 64, seed=9)
    first = run(ours, tensors, upstream)
    for _ in range(5):
        for a, b in zip(first, run(ours, tensors, upstream)):
            assert torch.equal(a, b)


def test_every_op_has_a_kernel(backend):
    # Ops whose GPU kernel is Triton's alone say so in their order; every op has one kernel at least.
    named = [name for name in _registry.names() if backend in _registry.get(name).order["cuda"]]
    assert len(named) >= 3 and (backend != "triton" or named == _registry.names())
    for name in named:
        assert _registry._why_not(_registry.get(name), backend, "cuda", torch.float32) is None


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("rows", (1, 10_000, 737_280))
@pytest.mark.parametrize("bins", (20, 3000))
def test_joint_counts_are_the_hosts(bins, rows, dtype):
    """Tables in shared memory, and with 3000 bins in global memory; only the counts leave the card."""
    generator = torch.Generator("cuda").manual_seed(rows)
    codes = torch.randn(rows, 10, generator=generator, device="cuda", dtype=dtype)
    # Values on edges, and a code that is constant.
    codes[:, 3] = torch.randint(0, 21, (rows,), generator=generator, device="cuda").to(dtype) / 20
    codes[:, 4] = 0.7
    sizes = (3, 6, 40, 32, 32)
    columns = [torch.randint(-1, size - 1, (rows,), generator=generator, device="cuda") for size in sizes]
    factors = torch.stack(columns, dim=1)
    found = _histogram.joint_counts(codes, factors, bins)
    expected = _histogram.joint_counts(codes.cpu().numpy(), factors.cpu().numpy(), bins)
    np.testing.assert_array_equal(found.counts, expected.counts)
    np.testing.assert_array_equal(found.starts, expected.starts)
    again = _histogram.joint_counts(codes, factors, bins)
    np.testing.assert_array_equal(found.counts, again.counts)


def test_mig_on_the_gpu_is_the_hosts():
    codes, factors = random(5000, 6), torch.randint(0, 7, (5000, 3), device="cuda")
    expected = sf.metrics.mig(codes.cpu(), factors.cpu())
    for given in (factors, factors.cpu(), factors.cpu().numpy()):
        assert sf.metrics.mig(codes, given).to_dict() == expected.to_dict()


def boosting_problem(rows, classes=(10, 4, 7), features=6):
    rng = np.random.default_rng(rows)
    factors = np.stack([rng.integers(0, c, rows) for c in classes], axis=1)
    mix = rng.normal(size=(len(classes), features))
    codes = (factors @ mix + 0.4 * rng.normal(size=(rows, features))).astype(np.float32)
    return [torch.from_numpy(a).cuda() for a in (codes, factors)]


@pytest.mark.parametrize("max_bins", (None, 64))
@pytest.mark.parametrize("rows", (33, 3000, 100_000))
def test_boosted_trees_are_the_hosts(rows, max_bins):
    """In shared memory, and with 100,000 rows from global memory."""
    codes, factors = boosting_problem(rows)
    factors = torch.stack([torch.unique(column, return_inverse=True)[1] for column in factors.t()], dim=1)
    found = _boosting_device.boost(codes, factors, codes[:500], rounds=5, max_bins=max_bins)
    arrays = (t.cpu().numpy() for t in (codes, factors, codes[:500]))
    expected = _boosting.boost(*arrays, rounds=5, max_bins=max_bins)
    np.testing.assert_allclose(found.importance, expected.importance, atol=1e-3)
    for ours, theirs in zip(found.train + found.test, expected.train + expected.test):
        # Near ties that rounding decides differently concern few rows.
        assert (np.abs(ours.cpu().numpy() - theirs) > 1e-3).mean() <= 0.02
    again = _boosting_device.boost(codes, factors, codes[:500], rounds=5, max_bins=max_bins)
    for ours, theirs in zip(found.train + found.test, again.train + again.test):
        assert torch.equal(ours, theirs)


def test_boosting_does_not_wait_for_the_gpu():
    codes, factors = boosting_problem(1000, classes=(5,))
    order, ranks, low, high = _boosting_device.bin_features(codes, None)
    raw, factor = torch.zeros(5, 1000, device="cuda"), torch.full((5,), 0.1, device="cuda")
    first = torch.tensor([0, 5], dtype=torch.int32, device="cuda")
    labels, unseen = factors.t().int(), codes.t().contiguous()
    arguments = (order, ranks, low, high, raw, raw, factor, labels, first, None, unseen, 20, 0)
    torch.ops.strucfast._boost_cuda(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.ops.strucfast._boost_cuda(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("continuous", (False, True))
def test_dci_on_the_gpu_is_the_hosts(continuous):
    codes, factors = boosting_problem(3000)
    tensors = codes[:2000], factors[:2000], codes[2000:], factors[2000:]
    found = sf.metrics.dci(*tensors, continuous=continuous)
    expected = sf.metrics.dci(*(t.cpu() for t in tensors), continuous=continuous)
    for name in ("disentanglement", "completeness", "informativeness_train", "informativeness_test"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=5e-3), name
    np.testing.assert_allclose(found.importance, expected.importance, atol=1e-2)


def test_a_second_device(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices: run `make gpu-test` on such a machine")
    x, scale, shift = (t.to("cuda:1") for t in (random(2, 8, 4, 4), random(2, 8), random(2, 8, seed=1)))
    assert torch.cuda.current_device() == 0
    y = sf.ops.modulate(x, scale, shift)
    assert y.device == x.device and torch.cuda.current_device() == 0
    torch.testing.assert_close(y, sf.reference.modulate(x, scale, shift))
