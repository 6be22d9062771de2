"""The only importer of matplotlib. Every function returns a Figure; `write_png` and `svg` write one."""

# isort: off (context first: it imports matplotlib)
from fastcifar.plotting.context import dark, own_context

# isort: on
from fastcifar.plotting.images import cam_grid, cam_sheet, captions, gallery, preview
from fastcifar.plotting.metrics import confusion_matrix, reliability_diagram
from fastcifar.plotting.style import svg, write_png
from fastcifar.plotting.text import class_labels
from fastcifar.plotting.training import curves, lr_curve

__all__ = [
    "cam_grid",
    "cam_sheet",
    "captions",
    "class_labels",
    "confusion_matrix",
    "curves",
    "dark",
    "gallery",
    "lr_curve",
    "own_context",
    "preview",
    "reliability_diagram",
    "svg",
    "write_png",
]
