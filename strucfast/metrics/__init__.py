"""Disentanglement metrics: arrays in (numpy or torch), a small result object out."""

from ._codes import Codes, load_codes, save_codes
from ._evaluate import Encoded, evaluate, names, register
from ._result import Result
from .dci import DCIResult, dci, dci_from_importance
from .mig import MIGResult, mig

__all__ = [
    "Codes",
    "DCIResult",
    "Encoded",
    "MIGResult",
    "Result",
    "dci",
    "dci_from_importance",
    "evaluate",
    "load_codes",
    "mig",
    "names",
    "register",
    "save_codes",
]
