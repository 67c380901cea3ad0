"""Forward, backward and both of a function of tensors, as callables for the timer."""

from collections.abc import Callable, Sequence

import torch

DIRECTIONS = ("forward", "backward", "both")


def passes(function: Callable, leaves: Sequence[torch.Tensor], direction: str) -> Callable[[], object]:
    """``function()`` uses ``leaves`` (which require grad) and returns a tensor or a tuple of tensors."""
    if direction == "forward":

        def forward():
            with torch.no_grad():
                return function()

        return forward

    def outputs_of():
        result = function()
        return [result] if isinstance(result, torch.Tensor) else _flat(result)

    upstream = [torch.randn_like(o) for o in outputs_of()]
    if direction == "both":
        return lambda: torch.autograd.grad(outputs_of(), leaves, upstream)
    outputs = outputs_of()
    return lambda: torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)


def _flat(result) -> list[torch.Tensor]:
    return [t for part in result for t in ([part] if isinstance(part, torch.Tensor) else _flat(part))]


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.detach().requires_grad_() for t in tensors]
