"""torch.distributions classes the field needs and torch lacks."""

from .point_mass import PointMass

__all__ = ["PointMass"]
