"""The one dispatch point: every op is an OpSpec, and every public function routes through :func:`dispatch`.

Order of decision: compiling -> the registered op where a kernel covers device and dtype, else the reference;
a torch.func transform or forward AD active, or the case not covered -> the reference; else the fused kernel.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import _native
from ._probes import constant_under_compile, direct_apply, transform_active, unwrapped, without_frame

BACKENDS = ("cpp", "triton", "cuda")
_HALF_OF_BACKEND = {"cpp": "cpu", "triton": "triton", "cuda": "cuda"}
ALL_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# One plain module-level variable: Dynamo guards on it; a ContextVar does not trace, threading.local goes stale.
_forced = "auto"
_library = torch.library.Library("strucfast", "DEF")
_specs: dict[str, "OpSpec"] = {}


@dataclass(frozen=True)
class Tolerance:
    """``err(kernel, float64) <= factor * err(eager in the same dtype, float64) + slack * eps * scale``.

    ``floor`` is the least scale of an output: the size of the terms that cancellation may leave far smaller.
    """

    factor: float = 2.0
    slack: float = 4.0
    floor: float = 1e-30


@dataclass(frozen=True)
class Sample:
    """One call of the public function; ``tensors`` are the differentiable ones, in the public order."""

    name: str
    args: tuple
    kwargs: dict


@dataclass(frozen=True)
class Kernels:
    """The forward and backward of one backend, called with the raw schema's arguments."""

    backend: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]


class OpSpec:
    """One op. Subclasses give the schemas and the raw calls; the raw forward's first argument is the tensor that
    decides device and dtype, the raw backward has it right behind the ``num_outputs`` upstream gradients.

    ``tensors`` is the flat tuple of differentiable inputs (None where an optional one is absent), ``statics`` the rest.
    """

    name: str
    # Everything after the op's name, as torch.library.Library.define wants it.
    schema: str
    backward_schema: str
    # How many of the raw outputs the user gets; the rest is for the backward only.
    num_outputs: int = 1
    # Inputs whose values the backward never reads: they are not kept alive for it.
    value_free: frozenset[int] = frozenset()
    # False: an output that nothing depends on gives None as its upstream gradient, which the raw backward takes.
    materialize_grads: bool = True
    dtypes: dict[str, tuple[torch.dtype, ...]] = {backend: ALL_FLOATS for backend in BACKENDS}
    # First match wins. No GPU has timed Triton against CUDA C++ yet (benchmarks/results/README.md).
    order: dict[str, tuple[str, ...]] = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}
    tolerance = Tolerance()

    def public(self) -> Callable[..., Any]:
        raise NotImplementedError

    def reference(self, tensors: Sequence, statics: tuple) -> Any:
        raise NotImplementedError

    def pack(self, tensors: Sequence, statics: tuple) -> tuple:
        """Flat tensors and statics -> the raw schema's arguments."""
        raise NotImplementedError

    def unpack(self, raw: tuple) -> tuple[tuple, tuple]:
        """The inverse of :meth:`pack`."""
        raise NotImplementedError

    def split(self, outputs: Any) -> tuple[tuple, tuple]:
        """Raw outputs -> (what the user gets, what only the backward needs)."""
        if isinstance(outputs, torch.Tensor):
            return (outputs,), ()
        return tuple(outputs[: self.num_outputs]), tuple(outputs[self.num_outputs :])

    def backward_call(self, grads: tuple, tensors: Sequence, saved: tuple, statics: tuple, needs: Sequence[bool]):
        """Raw backward arguments, and a function from raw gradients to a list aligned with ``tensors``."""
        raise NotImplementedError

    def fake(self, *raw: Any) -> Any:
        raise NotImplementedError

    def fake_backward(self, *raw: Any) -> Any:
        raise NotImplementedError

    def aten(self, *raw: Any) -> Any:
        """The raw forward in plain ATen, for installs and devices without a kernel."""
        raise NotImplementedError

    def aten_backward(self, *raw: Any) -> Any:
        raise NotImplementedError

    def triton_kernels(self) -> tuple[Callable, Callable]:
        raise NotImplementedError

    # Set by the specs that override refuses(), so that the others pay nothing for the question.
    has_limits: bool = False

    def refuses(self, backend: str, tensors: Sequence) -> str | None:
        """Why a backend that takes the device and dtype cannot take these sizes; None where it can."""
        return None

    def of_backward(self, raw: tuple) -> Sequence:
        """The tensors that :meth:`refuses` judges, out of the raw backward's arguments."""
        raise NotImplementedError

    def samples(self, device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        """Calls for the contract test: both layouts, every rank, every optional argument, odd sizes."""
        raise NotImplementedError


def register(spec: OpSpec) -> OpSpec:
    """Define the public op, its backward and one private op per backend; the binaries only IMPL them."""
    _specs[spec.name] = spec
    # The strides of what the op was written for are kept under Inductor.
    tags = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
    for suffix in ("", *(f"_{b}" for b in BACKENDS)):
        prefix = "_" if suffix else ""
        for stem, schema, fake in (
            (spec.name, spec.schema, spec.fake),
            (f"{spec.name}_backward", spec.backward_schema, spec.fake_backward),
        ):
            _library.define(f"{prefix}{stem}{suffix}{schema}", tags=tags)
            torch.library.register_fake(f"strucfast::{prefix}{stem}{suffix}", fake, lib=_library)

    def forward_impl(*raw):
        kernels = _pick(spec, raw[0])
        if kernels is not None and spec.has_limits and spec.refuses(kernels.backend, spec.unpack(raw)[0]) is not None:
            kernels = None
        return spec.aten(*raw) if kernels is None else kernels.forward(*raw)

    def backward_impl(*raw):
        kernels = _pick(spec, raw[spec.num_outputs])
        if kernels is not None and spec.has_limits and spec.refuses(kernels.backend, spec.of_backward(raw)) is not None:
            kernels = None
        return spec.aten_backward(*raw) if kernels is None else kernels.backward(*raw)

    _library.impl(spec.name, forward_impl, "CompositeExplicitAutograd")
    _library.impl(f"{spec.name}_backward", backward_impl, "CompositeExplicitAutograd")

    def triton_impl(which):
        def call(*raw):
            reason = _native.missing("triton")
            if reason is not None:
                raise RuntimeError(f"strucfast.{spec.name}: the triton backend is missing: {reason}")
            return spec.triton_kernels()[which](*raw)

        return call

    _library.impl(f"_{spec.name}_triton", triton_impl(0), "CompositeExplicitAutograd")
    _library.impl(f"_{spec.name}_backward_triton", triton_impl(1), "CompositeExplicitAutograd")
    _register_autograd(spec)
    return spec


def _register_autograd(spec: OpSpec) -> None:
    op_backward = getattr(torch.ops.strucfast, f"{spec.name}_backward").default
    kernels = Kernels("registered", getattr(torch.ops.strucfast, spec.name).default, op_backward)

    def setup_context(ctx, inputs, output):
        tensors, statics = spec.unpack(inputs)
        _save(ctx, (spec, kernels, statics), tensors, spec.split(output)[1])

    def backward(ctx, *grads):
        needs = spec.unpack(ctx.needs_input_grad)[0]
        gradients = _backward(ctx, grads[: spec.num_outputs], needs)
        return spec.pack(gradients, (None,) * len(ctx.kept[0][2]))

    torch.library.register_autograd(f"strucfast::{spec.name}", backward, setup_context=setup_context, lib=_library)


def _save(ctx, call: tuple[OpSpec, Kernels, tuple], tensors: Sequence, saved: tuple) -> None:
    """``call``: the spec, its kernels and the statics. All that is no tensor goes into one attribute; each costs."""
    spec, num_inputs, stand_ins = call[0], len(tensors), None
    if not spec.materialize_grads:
        ctx.set_materialize_grads(False)
    for i in spec.value_free:
        tensor = tensors[i]
        # A (N,C) parameter costs less to keep than to stand in for (9 us); one of x's shape does not.
        if tensor is not None and tensor.dim() > 2:
            stand_ins = {**(stand_ins or {}), i: (tensor.shape, tensor.dtype, tensor.device)}
            tensors = (*tensors[:i], None, *tensors[i + 1 :])
    ctx.save_for_backward(*tensors, *saved)
    ctx.kept = call, num_inputs, stand_ins


def _backward(ctx, grads: tuple, needs: Sequence[bool]) -> Sequence:
    (spec, kernels, statics), num_inputs, stand_ins = ctx.kept
    tensors, saved = ctx.saved_tensors, ()
    if len(tensors) > num_inputs:
        tensors, saved = tensors[:num_inputs], tensors[num_inputs:]
    if stand_ins is not None:
        tensors = list(tensors)
        for i, (shape, dtype, device) in stand_ins.items():
            tensors[i] = torch.zeros((), dtype=dtype, device=device).expand(shape)
    if torch.is_grad_enabled():
        return _differentiate_reference(spec, grads, tensors, statics, needs)
    raw, align = spec.backward_call(grads, tensors, saved, statics, needs)
    gradients = align(kernels.backward(*raw))
    return gradients if all(needs) else [g if need else None for g, need in zip(gradients, needs)]


def _differentiate_reference(
    spec: OpSpec, grads: tuple, tensors: Sequence, statics: tuple, needs: Sequence[bool]
) -> list:
    """create_graph=True: differentiate the reference, exact to any order."""
    # Aliases cut each input off from the others: with scale = f(x), grad must not also walk from scale back to x.
    aliases = [
        t if t is None else (t.view_as(t) if t.requires_grad else t.detach().requires_grad_(need))
        for t, need in zip(tensors, needs)
    ]
    wanted = [a for a, need in zip(aliases, needs) if need]
    outputs = spec.reference(aliases, statics)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if not spec.materialize_grads:
        outputs, grads = zip(*((o, g) for o, g in zip(outputs, grads) if g is not None))
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needs]


class _Fused(torch.autograd.Function):
    """Eager route: ctx style, half the call cost of a registered op."""

    @staticmethod
    def forward(ctx, call, *tensors):
        spec, kernels, statics = call
        outputs, saved = spec.split(kernels.forward(*spec.pack(tensors, statics)))
        _save(ctx, call, tensors, saved)
        return outputs if len(outputs) > 1 else outputs[0]

    @staticmethod
    def backward(ctx, *grads):
        return None, *_backward(ctx, grads, ctx.needs_input_grad[1:])


_apply_fused = direct_apply(_Fused)


@functools.cache
def mask_of(needs: tuple[bool, ...]) -> int:
    """Bit i says whether input i needs its gradient."""
    return sum(1 << i for i, need in enumerate(needs) if need)


@functools.cache
def _kernels(name: str, backend: str) -> Kernels:
    spec = _specs[name]
    if backend == "triton":
        return Kernels(backend, *spec.triton_kernels())
    ops = torch.ops.strucfast
    both = (getattr(ops, f"_{name}_{backend}").default, getattr(ops, f"_{name}_backward_{backend}").default)
    return Kernels(backend, *map(without_frame, both))


@functools.cache
def _has_kernel(name: str, backend: str) -> bool:
    key = "CPU" if backend == "cpp" else "CUDA"
    return (
        torch._C._dispatch_has_kernel_for_dispatch_key(f"strucfast::_{name}_{backend}", key)
        if backend != "triton"
        else True
    )


def _why_not(spec: OpSpec, backend: str, device: str, dtype: torch.dtype) -> str | None:
    """None when the backend runs this case, else the reason."""
    if backend not in BACKENDS:
        return f"no such backend (choose from {BACKENDS})"
    interpreted = backend == "triton" and device == "cpu" and _native.missing("triton") is None
    if backend not in spec.order.get(device, ()) and not interpreted:
        return f"it has no kernel for {device} tensors"
    reason = _native.missing(_HALF_OF_BACKEND[backend])
    if reason is not None:
        return reason
    if not _has_kernel(spec.name, backend):
        return "the library that is loaded does not contain this op; build again"
    if dtype not in spec.dtypes[backend]:
        return f"it takes {[str(d) for d in spec.dtypes[backend]]}, not {dtype}"
    return None


@functools.cache
def _automatic(name: str, device: torch.device, dtype: torch.dtype) -> Kernels | None:
    spec = _specs[name]
    for backend in spec.order.get(device.type, ()):
        if _why_not(spec, backend, device.type, dtype) is None:
            return _kernels(name, backend)
    return None


def _pick(spec: OpSpec, first: torch.Tensor) -> Kernels | None:
    """The kernels for the device and dtype of ``first`` under the current backend; None means the reference."""
    if _forced == "auto":
        return _automatic(spec.name, first.device, first.dtype)
    if _forced == "reference":
        return None
    reason = _why_not(spec, _forced, first.device.type, first.dtype)
    if reason is not None:
        raise RuntimeError(f"strucfast.{spec.name}: use_backend({_forced!r}) cannot run here: {reason}")
    return _kernels(spec.name, _forced)


def _covered(spec: OpSpec, device: str, dtype: torch.dtype) -> bool:
    return _forced != "reference" and (
        _forced != "auto" or _automatic(spec.name, torch.device(device), dtype) is not None
    )


def dispatch(spec: OpSpec, tensors: tuple, statics: tuple) -> Any:
    """Route one validated call; see the module's docstring for the order."""
    if torch.compiler.is_compiling():
        return _dispatch_compiling(spec, tensors, statics)
    if transform_active():
        if _forced not in ("auto", "reference"):
            raise RuntimeError(
                f"strucfast.{spec.name}: use_backend({_forced!r}) cannot run inside torch.func transforms or"
                " forward AD; use 'auto' or 'reference'"
            )
        return spec.reference(tensors, statics)
    kernels = _pick(spec, tensors[0])
    if kernels is not None and spec.has_limits and (reason := spec.refuses(kernels.backend, tensors)) is not None:
        if _forced != "auto":
            raise RuntimeError(f"strucfast.{spec.name}: use_backend({_forced!r}) cannot run here: {reason}")
        kernels = None
    if kernels is None:
        return spec.reference(tensors, statics)
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return _apply_fused((spec, kernels, statics), *unwrapped(tensors))
    outputs = spec.split(kernels.forward(*spec.pack(tensors, statics)))[0]
    return outputs if len(outputs) > 1 else outputs[0]


def _dispatch_compiling(spec: OpSpec, tensors: tuple, statics: tuple) -> Any:
    if not _covered_compiling(spec.name, tensors[0].device.type, tensors[0].dtype, _forced):
        return spec.reference(tensors, statics)
    op = getattr(torch.ops.strucfast, spec.name)
    outputs = spec.split(op(*spec.pack(tensors, statics)))[0]
    return outputs if len(outputs) > 1 else outputs[0]


@constant_under_compile
def _covered_compiling(name: str, device: str, dtype: torch.dtype, forced: str) -> bool:
    return _covered(_specs[name], device, dtype)


def current_backend() -> str:
    return _forced


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for every op: "reference", "cpp", "triton" or "cuda"; "auto" is the default choice.

    A forced backend runs or raises RuntimeError saying why it cannot; only "auto" falls back to the reference.
    Process-wide (all threads), so that torch.compile can guard on it.

    Raises:
        ValueError: ``name`` is none of the five.
    """
    global _forced
    choices = ("auto", "reference", *BACKENDS)
    if name not in choices:
        raise ValueError(f"use_backend: name must be one of {choices}, got {name!r}")
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def names() -> list[str]:
    return sorted(_specs)


def get(name: str) -> OpSpec:
    return _specs[name]


def describe(name: str) -> str:
    """One line: per device, the backends in dispatch order, the missing ones in brackets."""
    spec = _specs[name]
    parts = []
    for device, order in spec.order.items():
        shown = [b if _native.missing(_HALF_OF_BACKEND[b]) is None else f"[{b}]" for b in order]
        parts.append(f"{device}: {' > '.join([*shown, 'reference'])}")
    return "   ".join(parts)
