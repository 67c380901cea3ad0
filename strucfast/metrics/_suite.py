"""The metrics of :func:`evaluate`: how each is called with one set of encoded rows."""

from __future__ import annotations

from ._evaluate import Encoded, register
from ._result import Result
from .analytic_mig import analytic_mig
from .beta_vae_score import beta_vae_score
from .dci import dci
from .explicitness import explicitness
from .factor_vae_score import factor_vae_score
from .gaussian import gaussian_total_correlation, wasserstein_correlation
from .hoyer import hoyer
from .infomec import infomec
from .irs import irs
from .mig import mig
from .modularity import modularity
from .sap import sap


def _seed(data: Encoded) -> int:
    return int(data.rng.integers(1 << 31))


@register("mig")
def _mig(data: Encoded) -> Result:
    return mig(data.sample_codes, data.sample_factors, **data.names)


@register("dci")
def _dci(data: Encoded) -> Result:
    return dci(data.codes, data.factors, data.test_codes, data.test_factors, seed=_seed(data), **data.names)


@register("modularity")
def _modularity(data: Encoded) -> Result:
    return modularity(data.sample_codes, data.sample_factors, **data.names)


@register("sap")
def _sap(data: Encoded) -> Result:
    return sap(data.codes, data.factors, data.test_codes, data.test_factors, **data.names)


@register("explicitness")
def _explicitness(data: Encoded) -> Result:
    arrays = (data.codes, data.factors, data.test_codes, data.test_factors)
    return explicitness(*arrays, factor_names=data.factor_names)


@register("irs")
def _irs(data: Encoded) -> Result:
    return irs(data.sample_codes, data.sample_factors, **data.names)


@register("factor_vae_score")
def _factor_vae_score(data: Encoded) -> Result:
    return factor_vae_score(data.sample_codes, data.sample_factors, seed=_seed(data), **data.names)


@register("beta_vae_score", default=False)
def _beta_vae_score(data: Encoded) -> Result:
    return beta_vae_score(data.sample_codes, data.sample_factors, seed=_seed(data), **data.names)


@register("infomec", default=False)
def _infomec(data: Encoded) -> Result:
    return infomec(data.sample_codes, data.sample_factors, **data.names)


@register("analytic_mig", default=False, needs_logvar=True)
def _analytic_mig(data: Encoded) -> Result:
    return analytic_mig(data.sample_codes, data.sample_logvar, data.sample_factors, seed=_seed(data), **data.names)


@register("hoyer")
def _hoyer(data: Encoded) -> Result:
    return hoyer(data.sample_codes, code_names=data.code_names)


@register("gaussian_total_correlation")
def _gaussian_total_correlation(data: Encoded) -> Result:
    return gaussian_total_correlation(data.sample_codes, code_names=data.code_names)


@register("wasserstein_correlation")
def _wasserstein_correlation(data: Encoded) -> Result:
    return wasserstein_correlation(data.sample_codes, code_names=data.code_names)
