"""Ways to draw new codes for a decoder."""

from .hybrid import HybridSampler
from .prior import PriorSampler

__all__ = ["HybridSampler", "PriorSampler"]
