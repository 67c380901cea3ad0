"""Disentanglement metrics: arrays in (numpy or torch), a small result object out."""

from ._codes import Codes, load_codes, save_codes
from ._evaluate import Encoded, evaluate, names, register
from ._result import Result
from .dci import DCIResult, dci, dci_from_importance
from .discrete import ConditioningResult, NMIResult, conditioning_measures, discretise, entropy, mutual_information, nmi
from .gaussian import (
    GaussianTotalCorrelation,
    WassersteinCorrelation,
    gaussian_total_correlation,
    wasserstein_correlation,
)
from .hoyer import HoyerResult, hoyer
from .irs import IRSResult, irs
from .mig import MIGResult, mig
from .modularity import ModularityResult, modularity, modularity_from_information
from .sap import SAPResult, sap, sap_from_scores

__all__ = [
    "Codes",
    "ConditioningResult",
    "DCIResult",
    "Encoded",
    "GaussianTotalCorrelation",
    "HoyerResult",
    "IRSResult",
    "MIGResult",
    "ModularityResult",
    "NMIResult",
    "Result",
    "SAPResult",
    "WassersteinCorrelation",
    "conditioning_measures",
    "dci",
    "dci_from_importance",
    "discretise",
    "entropy",
    "evaluate",
    "gaussian_total_correlation",
    "hoyer",
    "irs",
    "load_codes",
    "mig",
    "modularity",
    "modularity_from_information",
    "mutual_information",
    "names",
    "nmi",
    "register",
    "sap",
    "sap_from_scores",
    "save_codes",
    "wasserstein_correlation",
]
