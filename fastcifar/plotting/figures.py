"""The functions of `fastcifar.plotting`. Each returns a Figure; `write_png` and `svg` write one."""

# isort: off (context first: it imports matplotlib)
from fastcifar.plotting.context import dark, own_context

# isort: on
from fastcifar.plotting.groups import group_curves
from fastcifar.plotting.images import SheetRow, cam_grid, cam_sheet, captions, gallery, mask, overlay, preview
from fastcifar.plotting.metrics import confusion_matrix, corruption_curves, reliability_diagram
from fastcifar.plotting.style import png, svg, write_png
from fastcifar.plotting.text import class_labels
from fastcifar.plotting.training import curves, lr_curve

__all__ = [
    "SheetRow",
    "cam_grid",
    "cam_sheet",
    "captions",
    "class_labels",
    "confusion_matrix",
    "corruption_curves",
    "curves",
    "dark",
    "gallery",
    "group_curves",
    "lr_curve",
    "mask",
    "overlay",
    "own_context",
    "png",
    "preview",
    "reliability_diagram",
    "svg",
    "write_png",
]
