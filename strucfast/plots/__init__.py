"""Pictures of what a model has learnt: grids, traversals, curves, matrices, and the HTML report.

Everything here takes plain things (a model with ``encode`` and ``decode``, arrays, dicts), so it works outside the
trainer too. Functions return a uint8 image array or a ``matplotlib.figure.Figure`` that belongs to no global state.
"""

from .curves import loss_curves
from .images import encode_png, image_grid, save_png, to_uint8
from .matrices import mutual_information_matrix
from .report import write_report
from .samples import Traversal, hybrid_samples, reconstructions, traversals, traverse

__all__ = [
    "Traversal",
    "encode_png",
    "hybrid_samples",
    "image_grid",
    "loss_curves",
    "mutual_information_matrix",
    "reconstructions",
    "save_png",
    "to_uint8",
    "traversals",
    "traverse",
    "write_report",
]
