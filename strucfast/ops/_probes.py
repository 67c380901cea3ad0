"""The private torch facts that dispatch needs, in one place; tests/ops/test_probes.py fails when torch moves them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

_unwrap = torch._C._functorch.unwrap_if_dead


def transform_active() -> bool:
    """True inside torch.func transforms (grad, vmap, jvp, ...) and inside a forward-AD level."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def constant_under_compile(function: Callable) -> Callable:
    """What ``torch.compiler.assume_constant_result`` does, without importing Dynamo (seconds) with the package."""
    function._dynamo_marked_constant = True
    return function


def without_frame(op: Callable) -> Callable:
    """The C++ callable that an OpOverload's ``__call__`` does nothing but call."""
    return op._op


def direct_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` for callers that asked :func:`transform_active`; 1 us less a call than asking again.

    What is left of it is :func:`unwrapped`, for the tensor arguments.
    """
    return super(torch.autograd.Function, function).apply


def unwrapped(tensors: tuple) -> list:
    """Tensors that leaked out of a torch.func transform stand for what they wrap."""
    return [None if t is None else _unwrap(t) for t in tensors]
