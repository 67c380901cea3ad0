"""Priors over codes as modules: each returns a torch distribution, saves with its model and may learn."""

import inspect
from typing import Any

from ._base import Prior
from .anisotropic_normal import AnisotropicNormalPrior
from .lp_nested_isa import LpNestedISAPrior
from .mixture_of_gaussians import MixtureOfGaussiansPrior
from .sparse_normal import SparseNormalPrior
from .standard_normal import StandardNormalPrior
from .student_t import StudentTPrior

__all__ = [
    "PRIORS",
    "AnisotropicNormalPrior",
    "LpNestedISAPrior",
    "MixtureOfGaussiansPrior",
    "Prior",
    "SparseNormalPrior",
    "StandardNormalPrior",
    "StudentTPrior",
    "build",
]

PRIORS: dict[str, type[Prior]] = {
    "normal": StandardNormalPrior,
    "anisotropic": AnisotropicNormalPrior,
    "student-t": StudentTPrior,
    "mixture": MixtureOfGaussiansPrior,
    "sparse": SparseNormalPrior,
    "isa": LpNestedISAPrior,
}


def build(name: str, dim: int, **options: Any) -> Prior:
    """The prior called ``name`` over codes of ``dim`` dims.

    Args:
        name: a key of ``PRIORS``.
        dim: D.
        options: the other arguments of the prior's class.

    Raises:
        ValueError: an unknown name; options that do not give ``dim`` dims.
        TypeError: an option the prior does not have, or one it needs and that is missing.
    """
    if name not in PRIORS:
        raise ValueError(f"name must be one of {', '.join(PRIORS)}, got {name!r}")
    signature = inspect.signature(PRIORS[name])
    if "dim" in signature.parameters:
        options = {"dim": dim, **options}
    unknown = sorted(set(options) - set(signature.parameters))
    missing = [key for key, p in signature.parameters.items() if p.default is p.empty and key not in options]
    if unknown or missing:
        said = f"has no option {unknown[0]!r}" if unknown else f"needs the option {missing[0]!r}"
        known = ", ".join(key for key in signature.parameters if key != "dim") or "none"
        raise TypeError(f"prior {name!r} {said}; its options: {known}")
    prior = PRIORS[name](**options)
    if prior.dim != dim:
        raise ValueError(f"prior {name!r} must have dim = {dim} dims, but its options give {prior.dim}")
    return prior
