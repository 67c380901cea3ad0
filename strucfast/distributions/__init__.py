"""torch.distributions classes the field needs and torch lacks, and priors as modules."""

# kl registers the closed forms with torch.distributions.kl_divergence.
from . import kl, priors
from .anisotropic_normal import AnisotropicNormal
from .generalized_normal import GeneralizedNormal
from .lp_nested import LpNested
from .lp_nested_isa import LpNestedISA, unit_variance_scale
from .mixture_of_gaussians import MixtureOfGaussians
from .point_mass import PointMass
from .product_student_t import ProductStudentT
from .sparse_normal import SparseNormal

__all__ = [
    "AnisotropicNormal",
    "GeneralizedNormal",
    "LpNested",
    "LpNestedISA",
    "MixtureOfGaussians",
    "PointMass",
    "ProductStudentT",
    "SparseNormal",
    "kl",
    "priors",
    "unit_variance_scale",
]
