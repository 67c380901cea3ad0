"""Checks of the CUDA C++ backend that test_emulated.py runs in a process where the emulated library is that backend."""

import itertools

import emulated_backend
import pytest
import torch

import strucfast as sf
from strucfast.ops import _registry


def _close(value, truth, dtype, what):
    assert value.shape == truth.shape, what
    if truth.numel() == 0:
        return
    # About a hundred roundings of the dtype: sums here have at most some thousand terms of size one.
    bound = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}[dtype]
    error = float((value.double() - truth.double()).abs().max())
    assert error <= bound * max(1.0, float(truth.double().abs().max())), f"{what}: {error}"


def _channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _unaligned(x):
    """The same values one element behind a 16-byte boundary, with NaN around them."""
    memory = torch.full((x.numel() + 9,), float("nan"), dtype=x.dtype)
    memory[1 : 1 + x.numel()] = x.reshape(-1)
    return memory[1 : 1 + x.numel()].view(x.shape)


def _gradients(reference, tensors, upstream):
    leaves = [t.double().requires_grad_() for t in tensors]
    outputs = reference(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [o.detach() for o in outputs], torch.autograd.grad(outputs, leaves, [g.double() for g in upstream])


def _ours(function, tensors, upstream):
    leaves = [t.detach().requires_grad_() for t in tensors]
    with sf.use_backend("cuda"):
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [o.detach() for o in outputs], torch.autograd.grad(outputs, leaves, upstream)


SHAPES = ((3, 5), (4, 16), (2, 8, 16, 8), (2, 7, 11), (1, 3, 2, 3, 5), (2, 33, 3, 5), (1, 2, 40, 40), (2, 64, 4, 4))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_modulate(shape, dtype):
    generator = torch.Generator().manual_seed(0)

    def rand(*sizes):
        return torch.randn(sizes, generator=generator).to(dtype)

    for layout in (torch.clone, _channels_last, _unaligned) if len(shape) > 2 else (torch.clone, _unaligned):
        x, g = layout(rand(*shape)), layout(rand(*shape))
        bank = rand(shape[0], 3, shape[1])
        pairs = [(rand(*shape[:2]), rand(*shape[:2])), (bank[:, 1], bank[:, 2])]
        if len(shape) > 2:
            pairs += [(layout(rand(*shape)), layout(rand(*shape))), (rand(*shape), rand(*shape[:2]))]
            pairs += [(rand(*shape[:2]), layout(rand(*shape)))]
        for scale, shift in pairs:
            what = (layout.__name__, scale.shape, shift.shape)
            truth = _gradients(sf.reference.modulate, (x, scale, shift), [g])
            found = _ours(sf.ops.modulate, (x, scale, shift), [g])
            for value, exact in zip(found[0] + list(found[1]), truth[0] + list(truth[1])):
                _close(value, exact, dtype, what)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_group_norm_modulate(shape, dtype):
    generator = torch.Generator().manual_seed(1)

    def rand(*sizes):
        return torch.randn(sizes, generator=generator).to(dtype)

    channels = shape[1]
    groups = {2: 1, 3: 3, 33: 11, 64: 8, 16: 2, 8: 2}.get(channels, 1)
    for turn, layout in enumerate((torch.clone, _channels_last, _unaligned)):
        if len(shape) < 3 and layout is _channels_last:
            continue
        x, g = layout(rand(*shape) + 3.0), layout(rand(*shape))
        bank = rand(shape[0], 3, channels)
        pairs = [(bank[:, 0], bank[:, 2])]
        if len(shape) > 2:
            pairs += [(layout(rand(*shape)), layout(rand(*shape))), (rand(*shape), rand(*shape[:2]))]
        for number, (scale, shift) in enumerate(pairs):
            activation = sf.reference._activations.ACTIVATIONS[(turn + 2 * number) % 6]
            tensors = (x, rand(channels), rand(channels), scale, shift)

            def call(f, activation=activation):
                return lambda first, *rest: f(first, groups, *rest, activation=activation)

            truth = _gradients(call(sf.reference.group_norm_modulate), tensors, [g])
            found = _ours(call(sf.ops.group_norm_modulate), tensors, [g])
            for value, exact in zip(found[0] + list(found[1]), truth[0] + list(truth[1])):
                _close(value, exact, dtype, (layout.__name__, activation, scale.shape))


@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("kilobytes", (227, 100, 12))
def test_groups_larger_than_shared_memory(kilobytes, dtype, channels_last):
    """The same numbers, bit for bit, whether a group stays in shared memory, half of it, or next to nothing."""
    generator = torch.Generator().manual_seed(2)
    x, g = (torch.randn((1, 16, 40, 40), generator=generator).to(dtype) for _ in range(2))
    x, g = (_channels_last(x), _channels_last(g)) if channels_last else (x, g)
    rest = [torch.randn(size, generator=generator).to(dtype) for size in ((16,), (16,), (1, 16), (1, 16))]

    def call(x, *rest):
        return sf.ops.group_norm_modulate(x, 1, *rest)

    expected = _ours(call, (x, *rest), [g])
    emulated_backend.controls.emulator_set_shared_limit(kilobytes * 1024)
    try:
        found = _ours(call, (x, *rest), [g])
    finally:
        emulated_backend.controls.emulator_set_shared_limit(227 * 1024)
    for value, plain in zip(found[0] + list(found[1]), expected[0] + list(expected[1])):
        assert torch.equal(value, plain)


def test_a_group_of_many_channels():
    """More channels in a group than their terms fit into shared memory."""
    generator = torch.Generator().manual_seed(3)
    x, g = (torch.randn((2, 9000), generator=generator) for _ in range(2))
    rest = [torch.randn(size, generator=generator) for size in ((9000,), (9000,), (2, 9000), (2, 9000))]
    truth = _gradients(lambda x, *r: sf.reference.group_norm_modulate(x, 1, *r), (x, *rest), [g])
    found = _ours(lambda x, *r: sf.ops.group_norm_modulate(x, 1, *r), (x, *rest), [g])
    for value, exact in zip(found[0] + list(found[1]), truth[0] + list(truth[1])):
        _close(value, exact, torch.float32, "9000 channels")


def test_a_large_offset_costs_no_digits():
    """x = 4096 + noise: the sums run on x minus its first element, so the output is as good as without the offset."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.randint(-512, 513, (2, 4, 8, 8), generator=generator) / 1024.0
    with sf.use_backend("cuda"):
        plain = sf.ops.group_norm_modulate(noise, 2, activation="identity")
        moved = sf.ops.group_norm_modulate(noise + 4096.0, 2, activation="identity")
    assert float((plain - moved).abs().max()) < 2e-6


STACKS = (
    (1, 8, 8, 6),
    (2, 64, 64, 64, 128),
    (1, 2),
    (3, 7, 70, 10),
    (5, 130, 66),
    (1, 1, 1, 2),
    (1, 1600, 4),
    (2, 5, 12),
)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("widths", STACKS, ids=str)
def test_str_tfm(widths, dtype):
    generator = torch.Generator().manual_seed(5)

    def rand(*sizes):
        return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)

    turn = STACKS.index(widths)
    names = sf.reference._activations
    options = {"activation": names.ACTIVATIONS[1 + turn % 5], "scale_map": names.SCALE_MAPS[turn % 5]}
    for samples, variables in ((5, 3), (17, 1), (0, 2)):
        u = rand(widths[0], samples, variables + 1).permute(1, 2, 0)[:, 1:]
        weights = [rand(variables, o, i) / i**0.5 for i, o in itertools.pairwise(widths)]
        biases = [rand(variables, o) for o in widths[1:]]
        upstream = [rand(samples, variables, widths[-1] // 2) for _ in range(2)]

        def split(f, options=options):
            return lambda first, *rest: f(first, rest[: len(rest) // 2], rest[len(rest) // 2 :], **options)

        tensors = (u, *weights, *biases)
        truth, found = (
            _gradients(split(sf.reference.str_tfm), tensors, upstream),
            _ours(split(sf.ops.str_tfm), tensors, upstream),
        )
        for value, exact in zip(list(found[0]) + list(found[1]), list(truth[0]) + list(truth[1])):
            _close(value, exact, dtype, (samples, variables, options))


def test_str_tfm_is_one_launch_forward_and_two_backward():
    u = torch.randn(20, 12, 1)
    weights = [torch.randn(12, o, i, requires_grad=True) for i, o in ((1, 8), (8, 8), (8, 4))]
    biases = [torch.randn(12, o, requires_grad=True) for o in (8, 8, 4)]
    with sf.use_backend("cuda"):
        start = emulated_backend.controls.emulator_launches()
        scale, shift = sf.ops.str_tfm(u, weights, biases)
        middle = emulated_backend.controls.emulator_launches()
        torch.autograd.grad((scale.sum() + shift.sum()), [*weights, *biases])
        assert (middle - start, emulated_backend.controls.emulator_launches() - middle) == (1, 2)


def test_a_stack_too_deep_or_too_wide_says_so():
    """The public function when forced, and the raw op for those who call it."""
    one = torch.ones(1, 1, 1)
    deep = [one] * 16 + [torch.ones(1, 2, 1)], [torch.ones(1, 1)] * 16 + [torch.ones(1, 2)]
    wide = [torch.ones(1, 9000, 1), torch.ones(1, 2, 9000)], [torch.ones(1, 9000), torch.ones(1, 2)]
    raw = torch.ops.strucfast._str_tfm_cuda
    with sf.use_backend("cuda"), torch.no_grad():
        for layers, public, own in ((deep, "16 layers", "16 layers"), (wide, "4096 features", "layers of at most")):
            with pytest.raises(RuntimeError, match=public):
                sf.ops.str_tfm(one, *layers)
            with pytest.raises(RuntimeError, match=own):
                raw(one, *layers, 1, 0, False)


def test_no_hidden_copies():
    """On the two native layouts, and with a slice of a bank of scales, nothing is allocated but the outputs."""
    for layout in (torch.clone, _channels_last):
        x, bank = layout(torch.randn(2, 8, 16, 16)), torch.randn(2, 3, 8)
        for call in (
            lambda x=x, bank=bank: sf.ops.modulate(x, bank[:, 0], bank[:, 1]),
            lambda x=x, bank=bank: sf.ops.group_norm_modulate(x, 2, None, None, bank[:, 0], bank[:, 1]),
        ):
            with sf.use_backend("cuda"), torch.no_grad():
                call()
                with torch.profiler.profile(profile_memory=True) as profile:
                    call()
            allocated = sum(max(0, e.self_cpu_memory_usage) for e in profile.events())
            # The output, and two statistics of 4 values rounded up to an allocation unit.
            assert allocated <= x.numel() * 4 + 4 * 64, allocated
            assert not any("copy" in e.key or "contiguous" in e.key for e in profile.key_averages())


def test_every_op_that_names_a_cuda_kernel_has_one():
    # The plugin left the order of the ops without one as it was.
    named = [name for name in _registry.names() if "cuda" in _registry.get(name).order["cpu"]]
    assert len(named) >= 3
    for name in named:
        for stem in (f"_{name}_cuda", f"_{name}_backward_cuda"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"strucfast::{stem}", "CPU"), stem
