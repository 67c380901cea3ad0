"""Fused layers in place of the plain ones in a network that exists already."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from ._checks import activation_name
from .group_norm_activation import GroupNormActivation

# What must be empty for a layer to be no more than its class says.
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did, by the layers' names in the model.

    Attributes:
        replaced: name of a norm -> the layers that run as one now.
        left: name of a norm -> why it was left alone.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} replaced, {len(self.left)} left alone"]
        for mark, entries in (("+", self.replaced), ("-", self.left)):
            lines += [f"{mark} {name or '(the model itself)'}: {text}" for name, text in entries.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Place:
    """One slot of the module tree that holds a norm, and the activation that follows it there."""

    parent: nn.Module
    key: str
    name: str
    activation: str | None = None
    # slot of the activation, None where there is none to empty
    behind: str | None = None
    problem: str | None = None


def convert(model: nn.Module) -> Conversion:
    """Replace GroupNorm and the activation behind it by one fused layer, in place.

    What is found: in an ``nn.Sequential``, an ``nn.GroupNorm`` followed by Mish, SiLU, ReLU, ELU (alpha 1) or Tanh,
    with Identity layers between or nothing but Identity layers behind. The norm's slot then holds a
    :class:`GroupNormActivation`, the activation's an ``nn.Identity``: state_dict keys, their order and the numbers of
    the layers stay, so that checkpoints of either network load into the other. The parameters are the same objects: an
    optimizer made before goes on. Convert before ``torch.compile`` and before wrapping for several processes; keep a
    ``copy.deepcopy`` where the plain network is still needed. Converting again changes nothing.

    What is left alone, with the reason in the report: subclasses, layers with hooks, parametrisations, layers of their
    own inside, or an instance's own ``forward``; a Sequential whose ``forward`` is overridden; norms outside of
    Sequentials, whose surroundings are in ``forward`` code (call :class:`GroupNormActivation` or
    :func:`strucfast.ops.group_norm_modulate` there); norms shared between places that do not all agree; InstanceNorm,
    whose style comes from code as well (:class:`AdaIN`, :func:`strucfast.ops.adain`).

    Equal to the plain network up to rounding, forward and backward. What changes: the output between norm and
    activation does not exist any more, for code that reads single layers of a Sequential; and under CUDA autocast, the
    fused layer returns x's dtype where torch's GroupNorm returns float32.

    Args:
        model: any module; its norms and activations are swapped inside their Sequentials.

    Returns:
        :class:`Conversion`.

    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    places: dict[nn.Module, list[_Place]] = {}
    report = Conversion()
    if isinstance(model, (nn.GroupNorm, *_INSTANCE_NORMS)):
        report.left[""] = "it is not in an nn.Sequential"
    for prefix, parent in model.named_modules():
        for place in _places_in(parent, prefix):
            places.setdefault(parent._modules[place.key], []).append(place)
    for norm, found in places.items():
        problems = {place.problem for place in found}
        activations = {place.activation for place in found}
        if problems == {None} and len(activations) == 1:
            _swap(norm, found, report)
            continue
        for place in found:
            reason = place.problem or "it is shared with a place where it is used otherwise"
            report.left[place.name] = reason
    return report


def _places_in(parent: nn.Module, prefix: str) -> Iterator[_Place]:
    if isinstance(parent, torch.jit.ScriptModule):
        return
    keys = list(parent._modules)
    for place, key in enumerate(keys):
        layer = parent._modules[key]
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(layer, _INSTANCE_NORMS):
            yield _Place(parent, key, name, problem="InstanceNorm: its style is in code; see AdaIN and ops.adain")
        elif isinstance(layer, nn.GroupNorm) and not isinstance(layer, GroupNormActivation):
            problem = _problem(layer, nn.GroupNorm) or _not_sequential(parent)
            if problem is None:
                behind, problem = _activation_behind(parent, keys[place + 1 :])
                yield _Place(parent, key, name, *(behind or (None, None)), problem)
            else:
                yield _Place(parent, key, name, problem=problem)


def _problem(layer: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why a layer is not just what its class says, or None."""
    if hasattr(layer, "parametrizations"):
        return "it is parametrised"
    if type(layer) is not kind:
        return f"{type(layer).__name__} is a subclass of {kind.__name__}"
    if "forward" in vars(layer):
        return "its forward was replaced"
    if any(getattr(layer, hooks, None) for hooks in _HOOKS):
        return f"the {kind.__name__} has hooks"
    expected = {"weight", "bias"} if kind is nn.GroupNorm else set()
    if layer._modules or layer._buffers or set(layer._parameters) != expected:
        return f"the {kind.__name__} has modules, buffers or parameters of its own"
    return None


def _not_sequential(parent: nn.Module) -> str | None:
    if not isinstance(parent, nn.Sequential):
        return "it is not in an nn.Sequential: what follows it is in forward code"
    if type(parent).forward is not nn.Sequential.forward or "forward" in vars(parent):
        return f"{type(parent).__name__} overrides forward"
    return None


def _activation_behind(parent: nn.Module, keys: list[str]) -> tuple[tuple[str, str | None] | None, str | None]:
    """(activation, its slot) behind a norm, or the reason why there is none."""
    identities = False
    for key in keys:
        layer = parent._modules[key]
        name = activation_name(layer) if layer is not None else None
        if name is None:
            if identities:
                break
            alpha = type(layer) is nn.ELU
            return None, f"{'ELU with another alpha' if alpha else type(layer).__name__} follows it"
        problem = _problem(layer, type(layer))
        if problem is not None:
            if identities:
                break
            return None, f"behind it, {problem}"
        if name != "identity":
            return (name, key), None
        identities = True
    return (("identity", None), None) if identities else (None, "nothing follows it")


def _swap(norm: nn.GroupNorm, places: list[_Place], report: Conversion) -> None:
    activation = places[0].activation
    # On meta: the parameters are the norm's own in a moment, and memory for others is never taken.
    fused = GroupNormActivation(norm.num_groups, norm.num_channels, activation, norm.eps, norm.affine, device="meta")
    fused.weight, fused.bias = norm.weight, norm.bias
    fused.train(norm.training)
    for place in places:
        kind = "Identity" if place.behind is None else type(place.parent._modules[place.behind]).__name__
        report.replaced[place.name] = f"GroupNorm + {kind}"
        place.parent._modules[place.key] = fused
    for place in places:
        if place.behind is not None:
            place.parent._modules[place.behind] = nn.Identity().train(norm.training)
