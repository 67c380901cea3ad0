"""Functional ops, fused and dispatching; the same names and signatures as :mod:`strucfast.reference`."""

from ._registry import use_backend
from .group_norm_modulate import group_norm_modulate
from .modulate import modulate
from .str_tfm import str_tfm

__all__ = ["group_norm_modulate", "modulate", "str_tfm", "use_backend"]
