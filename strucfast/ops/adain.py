from ..reference.adain import adain  # noqa: F401
