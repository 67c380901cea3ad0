"""What every registered op must pass; a new op gets all of it by being registered."""

import contextlib
import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch._dynamo.testing
from helpers import contract
from torch.func import functional_call  # noqa: F401  (torch.func must import before dispatch is probed)

import strucfast as sf
from strucfast import _native
from strucfast.ops import _registry

OPS = _registry.names()
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SEED_WARNING = "ignore:.*deterministic.*"


def _targets():
    """(op, backend, device) that can run on this machine."""
    found = []
    for op in OPS:
        for device in ("cpu", *(("cuda",) if torch.cuda.is_available() else ())):
            for backend in _registry.BACKENDS:
                if _registry._why_not(_registry.get(op), backend, device, torch.float32) is None:
                    found.append(pytest.param(op, backend, device, id=f"{op}-{backend}-{device}"))
    return found


TARGETS = _targets()
on_every_target = pytest.mark.parametrize("op,backend,device", TARGETS)
on_every_op = pytest.mark.parametrize("op", OPS)


def samples(op, device="cpu", dtype=torch.float32):
    return list(_registry.get(op).samples(torch.device(device), dtype))


def smooth(op, dtype=torch.float64):
    """The samples small and differentiable enough for finite differences and Hessians."""
    chosen = []
    for sample in samples(op, dtype=dtype):
        sizes = [t.numel() for t in contract.tensors_of((sample.args, sample.kwargs))]
        if 0 < sum(sizes) <= 320 and not any(kink in sample.name for kink in ("relu", "zeros")):
            chosen.append(sample)
    assert len(chosen) >= 3, f"{op} needs small samples for gradcheck"
    return chosen


def reference_of(op):
    return getattr(sf.reference, op)


def public_of(op):
    return getattr(sf.ops, op)


def reduction_length(sample):
    return max([1, *(t.numel() for t in contract.tensors_of((sample.args, sample.kwargs)))])


def test_a_native_backend_is_tested():
    """The suite must not pass by having nothing to run: a machine with a compiler builds the CPU half."""
    assert TARGETS, f"no backend to test: { ({h: _native.missing(h) for h in _native.HALVES}) }"


@on_every_target
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_against_float64(op, backend, device, dtype):
    spec = _registry.get(op)
    if dtype not in spec.dtypes[backend]:
        with sf.use_backend(backend), pytest.raises(RuntimeError, match="it takes"):
            _registry._pick(spec, torch.empty(1, dtype=dtype, device=device))
        return
    if backend == "triton" and device == "cpu" and dtype in (torch.bfloat16, torch.float16):
        dtype = torch.float32  # The interpreter's half arithmetic is not the GPU's.
    for sample in samples(op, device, dtype):
        truth = contract.run(reference_of(op), sample, torch.float64)
        eager = contract.run(reference_of(op), sample)
        with sf.use_backend(backend):
            found = contract.run(public_of(op), sample)
        length = reduction_length(sample)
        for kind, values, truths, eagers in zip(("output", "gradient"), found, truth, eager):
            for i, (value, exact, plain) in enumerate(zip(values, truths, eagers)):
                assert value is not None and value.dtype == plain.dtype, f"{sample.name}: {kind} {i}"
                floor = contract.UPSTREAM_MAX if kind == "gradient" else spec.tolerance.floor
                verdict = contract.judge(value, exact, plain, dtype, spec.tolerance, length, floor)
                assert verdict.ok, f"{sample.name}: {kind} {i}: {verdict.text}"


@on_every_target
def test_without_grad_the_same_values(op, backend, device):
    for sample in samples(op, device):
        with sf.use_backend(backend):
            with_grad = contract.run(public_of(op), sample)[0]
            with torch.no_grad():
                without = contract.outputs_of(public_of(op), sample.args, sample.kwargs)
        for a, b in zip(with_grad, without):
            assert torch.equal(a, b), sample.name


@on_every_target
def test_outputs_keep_shape_stride_and_input(op, backend, device):
    """Real strides equal the fake's (the reference's where native), and no input is written."""
    for sample in samples(op, device):
        before = [t.clone() for t in contract.tensors_of((sample.args, sample.kwargs))]
        with sf.use_backend(backend), torch.no_grad():
            outputs = contract.outputs_of(public_of(op), sample.args, sample.kwargs)
        expected = contract.outputs_of(reference_of(op), sample.args, sample.kwargs)
        x = contract.tensors_of(sample.args)[0]
        for out, plain in zip(outputs, expected):
            assert out.shape == plain.shape and out.dtype == plain.dtype, sample.name
            if out.shape == x.shape and "channels_last" in sample.name:
                assert out.stride() == x.stride(), sample.name
        for old, new in zip(before, contract.tensors_of((sample.args, sample.kwargs))):
            assert torch.equal(old, new), f"{sample.name}: an input was written"


@on_every_target
def test_gradients_only_where_asked(op, backend, device):
    """Each input alone requires grad: the mask path gives the same numbers as the full one."""
    for sample in samples(op, device)[:8]:
        with sf.use_backend(backend):
            full = contract.run(public_of(op), sample)[1]
            for wanted in range(len(full)):
                leaves = []
                args, kwargs = contract.map_tensors(sample, lambda t: leaves.append(t.detach()) or leaves[-1])
                leaves[wanted].requires_grad_()
                outputs = contract.outputs_of(public_of(op), args, kwargs)
                needed = [o for o in outputs if o.requires_grad]
                ups = [u for o, u in zip(outputs, contract.upstream(outputs)) if o.requires_grad]
                (grad,) = torch.autograd.grad(needed, leaves[wanted], ups)
                assert torch.equal(grad, full[wanted]), f"{sample.name}: input {wanted}"
                leaves[wanted].requires_grad_(False)


@on_every_target
def test_poisoned_allocations_change_nothing(op, backend, device):
    """Fresh memory holds NaN: whatever a kernel does not write shows."""
    for sample in samples(op, device):
        with sf.use_backend(backend):
            clean = contract.run(public_of(op), sample)
            with _deterministic(fill=True):
                poisoned = contract.run(public_of(op), sample)
        for a, b in zip(clean[0] + clean[1], poisoned[0] + poisoned[1]):
            assert torch.equal(a, b), sample.name


@contextlib.contextmanager
def _deterministic(fill):
    old = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(old[0])
            torch.utils.deterministic.fill_uninitialized_memory = old[1]


@on_every_target
def test_bitwise_repeatable_on_any_thread_count(op, backend, device):
    threads = torch.get_num_threads()
    for sample in samples(op, device):
        with sf.use_backend(backend):
            first = contract.run(public_of(op), sample)
            again = contract.run(public_of(op), sample)
            torch.set_num_threads(1)
            try:
                single = contract.run(public_of(op), sample)
            finally:
                torch.set_num_threads(threads)
        for a, b, c in zip(first[0] + first[1], again[0] + again[1], single[0] + single[1]):
            assert torch.equal(a, b) and torch.equal(a, c), sample.name


@on_every_op
def test_gradcheck_and_gradgradcheck(op):
    for sample in smooth(op):
        leaves = []
        args, kwargs = contract.map_tensors(
            sample, lambda t: leaves.append(t.detach().clone().requires_grad_()) or leaves[-1]
        )

        def call(*tensors, args=args, kwargs=kwargs, leaves=leaves):
            table = {id(old): new for old, new in zip(leaves, tensors)}
            swap = contract.pytree.tree_map_only(torch.Tensor, lambda t: table[id(t)], (args, kwargs))
            return public_of(op)(*swap[0], **swap[1])

        assert torch.autograd.gradcheck(call, leaves, fast_mode=True), sample.name
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True), sample.name


@on_every_op
def test_double_backward_with_dependent_inputs(op):
    """One input a function of another: create_graph must not count the path between them twice."""
    sample = smooth(op)[0]
    tensors = contract.tensors_of((sample.args, sample.kwargs))

    def loss(function, a):
        table = {id(t): t * (1.0 + 0.1 * a) for t in tensors}
        args, kwargs = contract.pytree.tree_map_only(torch.Tensor, lambda t: table[id(t)], (sample.args, sample.kwargs))
        return sum((o * o).sum() for o in contract.outputs_of(function, args, kwargs))

    def second(function):
        a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(loss(function, a), a, create_graph=True)
        return torch.autograd.grad(first, a)[0]

    torch.testing.assert_close(second(public_of(op)), second(reference_of(op)))


@on_every_op
def test_opcheck(op):
    spec = _registry.get(op)
    registered = getattr(torch.ops.strucfast, op).default
    chosen = samples(op)
    # The full list under STRUCFAST_FULL=1: each sample is traced four times.
    chosen = chosen if os.environ.get("STRUCFAST_FULL") == "1" else chosen[::3]
    for sample in chosen:
        for raw in _raw_calls(spec, sample):
            torch.library.opcheck(registered, raw)


def _raw_calls(spec, sample):
    """The raw op's arguments as the public function would pass them, recorded on the way through dispatch."""
    recorded = []

    def record(_, tensors, statics):
        tensors = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
        recorded.append(spec.pack(tensors, statics))
        raise _Recorded

    module = sys.modules[type(spec).__module__]
    original = module.dispatch
    module.dispatch = record
    try:
        args, kwargs = contract.map_tensors(sample, lambda t: t.detach().clone().requires_grad_())
        spec.public()(*args, **kwargs)
    except _Recorded:
        pass
    finally:
        module.dispatch = original
    return recorded


class _Recorded(Exception):
    pass


@on_every_op
def test_torch_func_transforms_equal_the_reference(op):
    for sample in smooth(op)[:2]:
        tensors = contract.tensors_of((sample.args, sample.kwargs))
        first = tensors[0]

        def scalar(function, value, first=first, sample=sample):
            args, kwargs = contract.map_tensors(sample, lambda t: value if t is first else t)
            return sum((o * o).sum() for o in contract.outputs_of(function, args, kwargs))

        def whole(function, value, first=first, sample=sample):
            args, kwargs = contract.map_tensors(sample, lambda t: value if t is first else t)
            return contract.outputs_of(function, args, kwargs)[0]

        ours, theirs = public_of(op), reference_of(op)
        transforms = {
            "grad": lambda f: torch.func.grad(lambda v: scalar(f, v))(first),
            "jacrev": lambda f: torch.func.jacrev(lambda v: whole(f, v))(first),
            "jacfwd": lambda f: torch.func.jacfwd(lambda v: whole(f, v))(first),
            "hessian": lambda f: torch.func.hessian(lambda v: scalar(f, v))(first),
            "vmap": lambda f: torch.func.vmap(lambda v: whole(f, v))(torch.stack([first, 2 * first])),
            "jvp": lambda f: torch.func.jvp(lambda v: whole(f, v), (first,), (first * first,))[1],
        }
        for name, transform in transforms.items():
            torch.testing.assert_close(transform(ours), transform(theirs), msg=lambda m, n=name: f"{n}: {m}")


@on_every_op
def test_forward_mode_ad(op):
    sample = smooth(op)[0]
    first = contract.tensors_of((sample.args, sample.kwargs))[0]
    tangents = []
    for function in (public_of(op), reference_of(op)):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(first, first * first)
            args, kwargs = contract.map_tensors(sample, lambda t, dual=dual: dual if t is first else t)
            out = contract.outputs_of(function, args, kwargs)[0]
            tangents.append(torch.autograd.forward_ad.unpack_dual(out).tangent)
    torch.testing.assert_close(*tangents)
    assert tangents[0].abs().max() > 0


@on_every_op
def test_compile_is_one_graph_and_exact(op):
    torch.compiler.reset()
    compiled = torch.compile(public_of(op), fullgraph=True, backend="aot_eager")
    for sample in samples(op)[:4] + [s for s in samples(op) if "channels_last" in s.name][:1]:
        eager = contract.run(public_of(op), sample)
        traced = contract.run(compiled, sample)
        for a, b in zip(eager[0] + eager[1], traced[0] + traced[1]):
            torch.testing.assert_close(a, b, msg=lambda m, n=sample.name: f"{n}: {m}")


@on_every_op
def test_compile_with_dynamic_batch_recompiles_at_most_twice(op):
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(public_of(op), fullgraph=True, backend=counter, dynamic=True)
    sample = samples(op)[0]
    for repeats in (1, 2, 3, 5, 7):

        def repeat(t, repeats=repeats, n=contract.tensors_of(sample.args)[0].shape[0]):
            return torch.cat([t] * repeats) if t.shape[:1] == (n,) and not _is_weight(sample, t) else t

        args, kwargs = contract.map_tensors(sample, repeat)
        torch.testing.assert_close(compiled(*args, **kwargs), public_of(op)(*args, **kwargs))
    assert counter.frame_count <= 2


def _is_weight(sample, tensor):
    return any(tensor is t for a in sample.args if isinstance(a, (list, tuple)) for t in a)


@on_every_op
def test_inductor_fullgraph_with_backward(op):
    torch.compiler.reset()
    sample = next(s for s in samples(op) if 0 < reduction_length(s))
    compiled = torch.compile(public_of(op), fullgraph=True)
    eager, traced = contract.run(public_of(op), sample), contract.run(compiled, sample)
    for a, b in zip(eager[0] + eager[1], traced[0] + traced[1]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@on_every_op
def test_export(op):
    sample = samples(op)[1]

    class Call(torch.nn.Module):
        def forward(self, *args):
            return public_of(op)(*args, **sample.kwargs)

    program = torch.export.export(Call(), sample.args)
    torch.testing.assert_close(program.module()(*sample.args), public_of(op)(*sample.args, **sample.kwargs))


@on_every_op
def test_autocast_and_mixed_dtypes(op):
    """bf16 features with float32 parameters, inside autocast: the reference's dtype, and its values."""
    for sample in samples(op)[:6]:
        features = contract.tensors_of(sample.args)[0]
        args, kwargs = contract.map_tensors(sample, lambda t, f=features: t.bfloat16() if t is f else t)
        mixed = _registry.Sample(sample.name, args, kwargs)
        truth, eager = contract.run(reference_of(op), mixed, torch.float64), contract.run(reference_of(op), mixed)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = contract.outputs_of(public_of(op), args, kwargs)
        for out, exact, plain in zip(outputs, truth[0], eager[0]):
            assert out.dtype == plain.dtype, sample.name
            tolerance = _registry.get(op).tolerance
            length = reduction_length(sample)
            verdict = contract.judge(out, exact, plain, out.dtype, tolerance, length, tolerance.floor)
            assert verdict.ok, f"{sample.name}: {verdict.text}"


@on_every_op
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_registered_op_without_a_kernel(op, dtype):
    """The plain ATen implementation behind the registered op, forward and analytic backward, equals the reference."""
    spec = _registry.get(op)
    registered = getattr(torch.ops.strucfast, op)
    for sample in samples(op, dtype=dtype):
        for raw in _raw_calls(spec, sample):
            tensors, statics = spec.unpack(raw)
            leaves = [t for t in tensors if t is not None]
            with sf.use_backend("reference"):
                outputs = spec.split(registered(*raw))[0]
                grads = torch.autograd.grad(outputs, leaves, contract.upstream(outputs))
            plain = spec.reference(tensors, statics)
            plain = plain if isinstance(plain, tuple) else (plain,)
            expected = torch.autograd.grad(plain, leaves, contract.upstream(list(plain)), allow_unused=True)
            for a, b in zip((*outputs, *grads), (*plain, *expected)):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 1e-9)


@on_every_op
def test_a_missing_half_falls_back_or_says_why(op, monkeypatch):
    sample = samples(op)[0]
    expected = contract.outputs_of(reference_of(op), sample.args, sample.kwargs)
    monkeypatch.setattr(_native, "missing", lambda half: "it was never built")
    _registry._automatic.cache_clear()
    try:
        outputs = contract.outputs_of(public_of(op), sample.args, sample.kwargs)
        with sf.use_backend("cpp"), pytest.raises(RuntimeError, match=f"{op}.*it was never built"):
            public_of(op)(*sample.args, **sample.kwargs)
    finally:
        _registry._automatic.cache_clear()
    for a, b in zip(outputs, expected):
        assert torch.equal(a, b)


@on_every_op
def test_a_forced_backend_refuses_transforms(op):
    if _native.missing("cpu") is not None:
        pytest.skip(f"needs the CPU half: {_native.missing('cpu')}")
    sample = smooth(op)[0]
    first = contract.tensors_of(sample.args)[0]
    args, kwargs = sample.args, sample.kwargs
    with sf.use_backend("cpp"), pytest.raises(RuntimeError, match="torch.func"):
        torch.func.vmap(lambda v: public_of(op)(*args[:0], v, *args[1:], **kwargs))(torch.stack([first, first]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make gpu` on one")
@on_every_target
def test_cuda_graph_capture(op, backend, device):
    if device != "cuda":
        return
    sample = samples(op, device)[1]
    with sf.use_backend(backend), torch.no_grad():
        expected = contract.outputs_of(public_of(op), sample.args, sample.kwargs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = contract.outputs_of(public_of(op), sample.args, sample.kwargs)
        graph.replay()
    for a, b in zip(expected, captured):
        assert torch.equal(a, b)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the process that the test starts")
def test_triton_in_the_interpreter():
    """TRITON_INTERPRET is read when a kernel is decorated, so the Triton half of this file runs in its own process."""
    pytest.importorskip("triton", reason="triton is not installed; pip install triton")
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: the kernels themselves are tested above")
    chosen = "triton and (values_and_gradients or poisoned or only_where_asked) and not float16"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", chosen]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-6000:]
    assert " passed" in result.stdout
