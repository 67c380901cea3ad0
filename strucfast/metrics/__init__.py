"""Disentanglement metrics: arrays in (numpy or torch), a small result object out."""

from . import _suite  # noqa: F401
from ._codes import Codes, load_codes, save_codes
from ._evaluate import Encoded, Results, evaluate, evaluate_codes, names, register
from ._result import Result
from .analytic_mig import AnalyticMIGResult, analytic_mig
from .beta_vae_score import BetaVAEScoreResult, beta_vae_score
from .dci import DCIResult, dci, dci_from_importance
from .discrete import ConditioningResult, NMIResult, conditioning_measures, discretise, entropy, mutual_information, nmi
from .explicitness import ExplicitnessResult, explicitness
from .factor_vae_score import FactorVAEScoreResult, factor_vae_score, majority_vote
from .frechet import FrechetResult, extract_features, frechet_distance, frechet_from_moments
from .gaussian import (
    GaussianTotalCorrelation,
    WassersteinCorrelation,
    gaussian_total_correlation,
    wasserstein_correlation,
)
from .hoyer import HoyerResult, hoyer
from .infomec import InfoMECResult, infomec
from .irs import IRSResult, irs
from .metric import Metric
from .mig import MIGResult, mig
from .modularity import ModularityResult, modularity, modularity_from_information
from .sap import SAPResult, sap, sap_from_scores
from .udr import UDRResult, udr

__all__ = [
    "AnalyticMIGResult",
    "BetaVAEScoreResult",
    "Codes",
    "ConditioningResult",
    "DCIResult",
    "Encoded",
    "ExplicitnessResult",
    "FactorVAEScoreResult",
    "FrechetResult",
    "GaussianTotalCorrelation",
    "HoyerResult",
    "IRSResult",
    "InfoMECResult",
    "MIGResult",
    "Metric",
    "ModularityResult",
    "NMIResult",
    "Result",
    "Results",
    "SAPResult",
    "UDRResult",
    "WassersteinCorrelation",
    "analytic_mig",
    "beta_vae_score",
    "conditioning_measures",
    "dci",
    "dci_from_importance",
    "discretise",
    "entropy",
    "evaluate",
    "evaluate_codes",
    "explicitness",
    "extract_features",
    "factor_vae_score",
    "frechet_distance",
    "frechet_from_moments",
    "gaussian_total_correlation",
    "hoyer",
    "infomec",
    "irs",
    "load_codes",
    "majority_vote",
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
    "udr",
    "wasserstein_correlation",
]
