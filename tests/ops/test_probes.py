"""Dispatch asks torch two private questions; when torch moves them, this must fail loudly."""

import subprocess
import sys

import torch
from torch.autograd import forward_ad

from strucfast import ops
from strucfast.ops._probes import constant_under_compile, direct_apply, transform_active, unwrapped, without_frame


def test_quiet_outside():
    assert transform_active() is False


def test_seen_inside_each_transform():
    seen = []

    def record(x):
        seen.append(transform_active())
        return x * x

    x = torch.ones(2)
    torch.func.vmap(record)(x)
    torch.func.grad(record)(x[0])
    torch.func.jvp(record, (x,), (x,))
    with forward_ad.dual_level():
        record(x)
    assert seen == [True] * 4
    assert transform_active() is False


def test_constant_is_what_torch_marks():
    def function():
        return 1

    official = dict(vars(torch.compiler.assume_constant_result(lambda: 1)))
    assert vars(constant_under_compile(function)) == official


def test_without_frame_is_all_that_the_overload_calls():
    overload = torch.ops.aten.addcmul.default
    a, b = torch.arange(3.0), torch.tensor([1.0, -2.0, 0.5])
    assert torch.equal(without_frame(overload)(a, b, b, value=2.0), overload(a, b, b, value=2.0))

    class Recording(torch.utils._python_dispatch.TorchDispatchMode):
        seen: list = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.append(function)
            return function(*args, **(kwargs or {}))

    with Recording() as mode:
        without_frame(overload)(a, b, b)
    assert mode.seen == [overload], "modes (FakeTensor, FLOP counters, make_fx) must see the op that was called"


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, power, x):
        ctx.power = power
        ctx.save_for_backward(x)
        return x**power

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return None, grad * ctx.power * x ** (ctx.power - 1)


def test_direct_apply_is_apply():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    ours, theirs = direct_apply(_Cube)(3, x), _Cube.apply(3, x)
    assert torch.equal(ours, theirs) and type(ours.grad_fn) is type(theirs.grad_fn)
    assert torch.equal(torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(theirs.sum(), x)[0])


def test_a_tensor_that_leaked_out_of_a_transform_stands_for_what_it_wraps():
    leaked = []

    def leak(v):
        leaked.append(v)
        return (v * v).sum()

    x = torch.randn(2, 3, 4, requires_grad=True)
    torch.func.grad(leak)(x)
    assert torch._C._functorch.is_functorch_wrapped_tensor(leaked[0])
    inner, absent = unwrapped((leaked[0], None))
    assert inner is x and absent is None
    scale, shift = torch.randn(2, 2, 3)
    y = ops.modulate(leaked[0], scale, shift)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, scale.unsqueeze(2).expand(2, 3, 4))


def test_import_does_not_load_dynamo():
    script = "import sys, strucfast; assert 'torch._dynamo' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
