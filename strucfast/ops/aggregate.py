from ..reference.aggregate import aggregate_log_density  # noqa: F401
