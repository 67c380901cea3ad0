"""Functional ops, fused and dispatching; the same names and signatures as :mod:`strucfast.reference`."""

from ._registry import use_backend
from .adain import adain
from .aggregate import aggregate_log_density
from .group_norm_modulate import group_norm_modulate
from .kl_terms import kl_terms
from .lp_nested import lp_nested_log_prob
from .modulate import modulate
from .pairwise import hsic, mmd, mmd_dimwise
from .str_tfm import str_tfm

__all__ = [
    "adain",
    "aggregate_log_density",
    "group_norm_modulate",
    "hsic",
    "kl_terms",
    "lp_nested_log_prob",
    "mmd",
    "mmd_dimwise",
    "modulate",
    "str_tfm",
    "use_backend",
]
