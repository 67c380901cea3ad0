from ..reference.pairwise import hsic, mmd, mmd_dimwise  # noqa: F401
