"""Forward, backward and both of a function of tensors, as callables for the timer."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch._functorch.config

from benchmarks import _precompile

DIRECTIONS = ("forward", "backward", "both")
# Values of one output that are compared: at larger sizes only some rows.
COMPARED = 1 << 20


def passes(function: Callable, leaves: Sequence[torch.Tensor], direction: str) -> Callable[[], object]:
    """``function()`` uses ``leaves`` (which require grad) and returns a tensor or a tuple of tensors."""
    if _precompile.is_child():
        # Only one of the providers will be called there.
        return lambda: _build(function, leaves, direction)()
    return _build(function, leaves, direction)


def _build(function: Callable, leaves: Sequence[torch.Tensor], direction: str) -> Callable[[], object]:
    if direction == "forward":

        def forward():
            with torch.no_grad():
                return function()

        return forward

    def outputs_of():
        result = function()
        return [result] if isinstance(result, torch.Tensor) else _flat(result)

    if direction == "both":
        upstream = [torch.rand_like(o) for o in outputs_of()]
        return lambda: torch.autograd.grad(outputs_of(), leaves, upstream)
    # What torch.compile saved for the backward would otherwise be given away by its first run.
    with torch._functorch.config.patch(donated_buffer=False):
        outputs = outputs_of()
        upstream = [torch.rand_like(o) for o in outputs]
        torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)
    return lambda: torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)


def agree(functions: Mapping[str, Callable], direction: str, rtol: float, atol: float) -> None:
    """Raises AssertionError where a provider's values are not those of "strucfast": its ratio would mean nothing.

    After ``passes`` of ``direction``, so that torch.compile's values are those of the graph that is timed.
    """
    if _precompile.is_child():
        return
    with torch.set_grad_enabled(direction != "forward"):
        expected = _some(functions["strucfast"]())
        for name, function in functions.items():
            if name != "strucfast":
                torch.testing.assert_close(
                    _some(function()), expected, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
                )


def _some(result) -> list[torch.Tensor]:
    tensors = [result] if isinstance(result, torch.Tensor) else _flat(result)
    return [t.detach()[:: -(-t.numel() // COMPARED)] if t.dim() else t.detach() for t in tensors]


def per_direction(direction: str, forward: float, backward: float) -> float:
    """What an op moves or evaluates in ``direction``; between the two of "both" nothing but the inputs is kept."""
    return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


def bytes_of(*tensors: torch.Tensor) -> int:
    return sum(t.nbytes for t in tensors)


def _flat(result) -> list[torch.Tensor]:
    return [t for part in result for t in ([part] if isinstance(part, torch.Tensor) else _flat(part))]


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.detach().requires_grad_() for t in tensors]
