from ..reference.lp_nested import lp_nested_log_prob  # noqa: F401
