"""torch.distributions classes the field needs and torch lacks, and priors as modules."""

from . import priors
from .lp_nested_isa import LpNestedISA, unit_variance_scale
from .point_mass import PointMass

__all__ = ["LpNestedISA", "PointMass", "priors", "unit_variance_scale"]
