"""Plain PyTorch truth of every op: any dtype, any device, differentiable to any order."""

from .group_norm_modulate import group_norm_modulate
from .modulate import modulate
from .str_tfm import str_tfm

__all__ = ["group_norm_modulate", "modulate", "str_tfm"]
