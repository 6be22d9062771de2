"""Figures of classification metrics: confusion matrix and reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from fastcifar.plotting.context import own_context
from fastcifar.plotting.style import DPI, GREY, LUMINANCE, TRAIN_COLOUR, VAL_COLOUR, layout
from fastcifar.plotting.text import class_labels, families, printable
from fastcifar.plotting.tiles import wrapped

MAX_NUMBERED, MAX_LARGE, MAX_NAMED = 20, 50, 120  # classes
TITLE_POINTS = 10


@own_context()
def confusion_matrix(counts: npt.NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """The share of each true class (row) that is predicted as each class (column); with counts up to 20 classes.

    counts: (C, C). The colour scale is that of the mistakes; the diagonal has a colour of its own.
    """
    num_classes = len(names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mistakes = np.where(np.eye(num_classes, dtype=bool), np.nan, share)
    background = matplotlib.rcParams["axes.facecolor"]
    blended: Any = 0.6 * np.array(to_rgb(background)) + 0.4 * np.array(to_rgb(TRAIN_COLOUR))
    correct = to_hex(blended)
    colours = LinearSegmentedColormap.from_list("mistakes", [background, VAL_COLOUR]).with_extremes(bad=correct)
    side = min(max(4.5, 1.6 + 0.55 * num_classes), 14)
    figure = Figure(figsize=(side + 1.2, side), layout=layout())
    axis = figure.subplots()
    max_share = np.nanmax(mistakes) if num_classes > 1 and np.nanmax(mistakes) > 0 else 1.0
    image = axis.imshow(mistakes, cmap=colours, vmin=0, vmax=max_share)
    if num_classes <= MAX_NUMBERED:
        _write_counts(axis, counts, colours(np.ma.masked_invalid(mistakes / max_share))[..., :3])
    if num_classes <= MAX_NAMED:
        _write_names(axis, class_labels(names))
    axis.set(xlabel="predicted class", ylabel="true class")
    _set_title(axis, title)
    bar = figure.colorbar(image, ax=axis, shrink=0.7, format=PercentFormatter(1.0))
    bar.set_label("mistakes, share of the true class")
    diagonal: list[Artist] = [Patch(facecolor=correct, label="diagonal: correctly classified, not on the colour scale")]
    figure.legend(handles=diagonal, loc="outside lower right", frameon=False, fontsize=8)
    return figure


def _write_counts(axis: Any, counts: npt.NDArray[np.int64], cells: npt.NDArray[np.float64]) -> None:
    """cells: (C, C, 3), the colour of each cell."""
    is_light = cells @ LUMINANCE > 0.46  # where black has more contrast than white
    for (row, column), count in np.ndenumerate(counts):
        colour = "black" if is_light[row, column] else "white"
        alpha = 1.0 if count else 0.4
        axis.text(column, row, f"{count:,}", ha="center", va="center", size=7, color=colour, alpha=alpha)


def _write_names(axis: Any, names: Sequence[str]) -> None:
    short = [printable(name if len(name) <= 16 else f"{name[:15]}…") for name in names]
    size, rotation = (8, 45) if len(names) <= MAX_LARGE else (5, 90)
    style: dict[str, Any] = {"size": size, "family": families("".join(short)), "parse_math": False}
    rotated: dict[str, Any] = {"rotation": rotation, "va": "top" if rotation == 45 else "center"}
    axis.set_xticks(range(len(names)), short, ha="right", rotation_mode="anchor", **rotated, **style)
    axis.set_yticks(range(len(names)), short, **style)


def _set_title(axis: Any, title: str) -> None:
    """Wrapped to three quarters of the figure's width, about that of the axes."""
    width = 0.75 * axis.figure.get_figwidth() * DPI
    lines = [line for part in title.split("\n") for line in wrapped(printable(part), width, TITLE_POINTS)]
    axis.set_title("\n".join(lines), size=TITLE_POINTS, family=families(title), parse_math=False)


@own_context()
def reliability_diagram(
    confidence: npt.NDArray[np.float64],
    accuracy: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    title: str,
) -> Figure:
    """Accuracy by confidence, and the number of predictions of each confidence.

    Each array is (bins,): mean confidence, accuracy and number of the predictions in bins of equal width over 0..1.
    """
    num_bins = len(counts)
    figure = Figure(figsize=(5, 5), layout=layout())
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    filled = counts > 0
    left, width = np.linspace(0, 1, num_bins + 1)[:-1][filled], 1 / num_bins
    gaps = confidence[filled] - accuracy[filled]
    ece = np.abs(gaps) @ counts[filled] / counts.sum()
    edge = matplotlib.rcParams["axes.facecolor"]
    bars: dict[str, Any] = {"width": width, "align": "edge", "edgecolor": edge, "lw": 0.5}
    upper.bar(left, accuracy[filled], color=TRAIN_COLOUR, label="accuracy", **bars)
    hatched: dict[str, Any] = {**bars, "edgecolor": VAL_COLOUR, "color": "none", "hatch": "////"}
    upper.bar(left, gaps, bottom=accuracy[filled], label="gap to confidence", **hatched)
    text_colour = matplotlib.rcParams["text.color"]
    upper.plot([0, 1], [0, 1], "--", lw=1, color=text_colour, alpha=0.6, label="perfect calibration")
    upper.set(ylim=(0, 1), xlim=(0, 1), ylabel="accuracy")
    _set_title(upper, f"{title}\nexpected calibration error (ECE) {ece:.2%}".strip())
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.bar(left, counts[filled] / counts.sum(), width, align="edge", color=GREY)
    lower.set(xlabel="confidence", ylabel="share of images")
    for axis in (upper, lower):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
