"""The only importer of matplotlib. Every function returns a Figure; `write_png` and `svg` write one."""

# isort: off (the context first: it is what imports matplotlib)
from fastcifar.plotting.context import dark, own_context

# isort: on
from fastcifar.plotting.images import cam_grid, cam_sheet, gallery, preview
from fastcifar.plotting.rates import rates
from fastcifar.plotting.scores import confusion, reliability
from fastcifar.plotting.style import svg, write_png
from fastcifar.plotting.text import class_labels
from fastcifar.plotting.training import curves, lr_curve

__all__ = [
    "cam_grid",
    "cam_sheet",
    "class_labels",
    "confusion",
    "curves",
    "dark",
    "gallery",
    "lr_curve",
    "own_context",
    "preview",
    "rates",
    "reliability",
    "svg",
    "write_png",
]
