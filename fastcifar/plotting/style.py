"""Colours that all figures share, light and dark, and the writing of a figure."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fastcifar.files import write_bytes

HEAT = "inferno"  # even to the eye, also to the colour-blind
TRAIN_COLOUR, VAL_COLOUR = "#4477aa", "#cc6677"  # Paul Tol's "muted" scheme
GREY = "#808080"  # can be read on white and on dark
DPI = 120
DARK: dict[Any, str] = {
    "figure.facecolor": "#16181d",
    "axes.facecolor": "#16181d",
    "savefig.facecolor": "#16181d",
    "text.color": "#e6e6e6",
    "axes.labelcolor": "#e6e6e6",
    "axes.edgecolor": "#8a8f98",
    "xtick.color": "#c4c8cf",
    "ytick.color": "#c4c8cf",
    "grid.color": "#8a8f98",
}


def within() -> ConstrainedLayoutEngine:
    """The layout of a figure with axes: room enough that no label is cut, in an SVG too (which has 72 dots an inch)."""
    return ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)


def write_png(path: Path, figure: Figure) -> Path:
    """Write a figure as PNG, whole or not at all; returns `path`."""
    file = io.BytesIO()
    quickly = {"compress_level": 2}  # a quarter larger than with 6, in a third of the time
    with any_script():
        figure.savefig(file, format="png", dpi=DPI, pil_kwargs=quickly)
    write_bytes(path, file.getbuffer())
    return path


def svg(figure: Figure) -> bytes:
    """A figure as SVG, its letters as shapes; the same bytes for the same figure."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fastcifar"}), any_script():
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


@contextmanager
def any_script() -> Iterator[None]:
    """In the block, letters that the font does not have are drawn as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


@contextmanager
def dark() -> Iterator[None]:
    """Figures made in the block are light on dark."""
    with matplotlib.rc_context(DARK):
        yield
