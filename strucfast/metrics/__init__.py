"""Disentanglement metrics: arrays in (numpy or torch), a small result object out."""

from ._codes import Codes, load_codes, save_codes
from ._evaluate import Encoded, evaluate, names, register
from ._result import Result
from .mig import MIGResult, mig

__all__ = [
    "Codes",
    "Encoded",
    "MIGResult",
    "Result",
    "evaluate",
    "load_codes",
    "mig",
    "names",
    "register",
    "save_codes",
]
