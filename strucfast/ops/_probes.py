"""The private torch facts that dispatch needs, in one place; tests/ops/test_probes.py fails when torch moves them."""

from collections.abc import Callable

import torch
from torch.autograd import forward_ad


def transform_active() -> bool:
    """True inside torch.func transforms (grad, vmap, jvp, ...) and inside a forward-AD level."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def constant_under_compile(function: Callable) -> Callable:
    """What ``torch.compiler.assume_constant_result`` does, without importing Dynamo (seconds) with the package."""
    function._dynamo_marked_constant = True
    return function
