"""Triton kernels and their launchers, importable only as ``strucfast.triton_kernels``.

The launchers take and return exactly what the private ops of ``strucfast.ops`` do; they need torch and triton alone.
"""

if __name__ != "strucfast.triton_kernels":
    # The bare name belongs to the Triton project, and other packages alias it in sys.modules.
    raise ImportError(
        f"this folder is installed as strucfast.triton_kernels, not as {__name__!r}: "
        "install strucfast (pip install -e . --no-build-isolation) and import strucfast.triton_kernels"
    )

from .adain import adain_backward, adain_forward
from .aggregate import aggregate_backward, aggregate_forward
from .group_norm_modulate import group_norm_modulate_backward, group_norm_modulate_forward
from .kl_terms import kl_terms_backward, kl_terms_forward
from .lp_nested import lp_nested_log_prob_backward, lp_nested_log_prob_forward
from .modulate import modulate_backward, modulate_forward
from .pairwise import hsic_backward, hsic_forward, mmd_backward, mmd_dimwise_forward, mmd_forward
from .str_tfm import str_tfm_backward, str_tfm_forward

__all__ = [
    "adain_backward",
    "adain_forward",
    "aggregate_backward",
    "aggregate_forward",
    "group_norm_modulate_backward",
    "group_norm_modulate_forward",
    "hsic_backward",
    "hsic_forward",
    "kl_terms_backward",
    "kl_terms_forward",
    "lp_nested_log_prob_backward",
    "lp_nested_log_prob_forward",
    "mmd_backward",
    "mmd_dimwise_forward",
    "mmd_forward",
    "modulate_backward",
    "modulate_forward",
    "str_tfm_backward",
    "str_tfm_forward",
]
