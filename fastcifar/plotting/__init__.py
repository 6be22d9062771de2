"""The only importer of matplotlib. Every function returns a Figure; `save`, `write_png` and `svg` write one."""

from fastcifar.plotting.images import cam_grid, cam_sheet, gallery, preview
from fastcifar.plotting.rates import rates
from fastcifar.plotting.scores import confusion, reliability
from fastcifar.plotting.style import dark, svg, write_png
from fastcifar.plotting.training import curves, lr_curve

__all__ = [
    "cam_grid",
    "cam_sheet",
    "confusion",
    "curves",
    "dark",
    "gallery",
    "lr_curve",
    "preview",
    "rates",
    "reliability",
    "svg",
    "write_png",
]
