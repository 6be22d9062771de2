"""Figures of classification metrics: confusion matrix and reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from fastcifar.plotting.context import own_context
from fastcifar.plotting.style import DPI, GREY, LUMINANCE, TRAIN_COLOUR, VAL_COLOUR, Figure, layout
from fastcifar.plotting.text import class_labels, families, printable
from fastcifar.plotting.tiles import wrapped

MAX_NUMBERED, MAX_LARGE, MAX_NAMED = 20, 50, 120  # classes
TITLE_POINTS = 10
Bins: TypeAlias = "tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]"


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
    bar.ax.tick_params(labelsize=8)
    diagonal: list[Artist] = [Patch(facecolor=correct, label="diagonal: correctly classified, not on the colour scale")]
    figure.legend(handles=diagonal, loc="outside lower right", frameon=False, fontsize=8)
    return figure


def _write_counts(axis: Any, counts: npt.NDArray[np.int64], cells: npt.NDArray[np.float64]) -> None:
    """cells: (C, C, 3), the colour of each cell."""
    is_light = cells @ LUMINANCE > 0.46  # where black has more contrast than white
    size = 9 if counts.max() < 10_000 else 7
    for (row, column), count in np.ndenumerate(counts):
        colour = "black" if is_light[row, column] else "white"
        alpha = 1.0 if count else 0.6
        axis.text(column, row, f"{count:,}", ha="center", va="center", size=size, color=colour, alpha=alpha)


def _write_names(axis: Any, names: Sequence[str]) -> None:
    short = [printable(name if len(name) <= 16 else f"{name[:15]}…") for name in names]
    size, rotation = (9 if len(names) <= MAX_NUMBERED else 8, 45) if len(names) <= MAX_LARGE else (5, 90)
    style: dict[str, Any] = {"size": size, "family": families("".join(short)), "parse_math": False}
    rotated: dict[str, Any] = {"rotation": rotation, "va": "top" if rotation == 45 else "center"}
    axis.set_xticks(range(len(names)), short, ha="right", rotation_mode="anchor", **rotated, **style)
    axis.set_yticks(range(len(names)), short, **style)


def _set_title(axis: Any, title: str) -> None:
    """Wrapped to three quarters of the figure's width, about that of the axes."""
    text = _wrapped(title, 0.75 * axis.figure.get_figwidth())
    axis.set_title(text, size=TITLE_POINTS, family=families(title), parse_math=False)


def _wrapped(title: str, inches: float) -> str:
    lines = [line for part in title.split("\n") for line in wrapped(printable(part), inches * DPI, TITLE_POINTS)]
    return "\n".join(lines)


@own_context()
def reliability_diagram(
    confidence: npt.NDArray[np.float64],
    accuracy: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    title: str,
    calibrated: Bins | None = None,
) -> Figure:
    """Accuracy by confidence, and the number of predictions of each confidence.

    Each array is (bins,): mean confidence, accuracy and number of the predictions in bins of equal width over 0..1.
    calibrated: these three of the calibrated predictions, drawn next to the plain ones.
    """
    columns = [(f"{title}\n" if title else "", (confidence, accuracy, counts))]
    if calibrated is not None:
        columns = [("before calibration\n", columns[0][1]), ("after calibration\n", calibrated)]
    figure = Figure(figsize=(4.2 if len(columns) == 1 else 8.4, 4.6), layout=layout())
    axes = figure.subplots(2, len(columns), height_ratios=[3, 1], sharex=True, sharey="row", squeeze=False)
    for (upper, lower), (heading, bins) in zip(axes.T, columns, strict=True):
        _set_title(upper, heading + _draw_reliability(upper, lower, *bins))
        lower.set(xlabel="confidence")
        lower.xaxis.set_major_formatter(PercentFormatter(1.0))
        for axis in (upper, lower):
            axis.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g}%")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set(ylim=(0, 1), xlim=(0, 1), ylabel="accuracy")
    axes[1, 0].set(ylabel="share of images")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)  # not over the bars
    if calibrated is not None and title:
        text = _wrapped(title, 0.9 * figure.get_figwidth())
        figure.suptitle(text, size=TITLE_POINTS, family=families(title), parse_math=False)
    return figure


def _draw_reliability(
    upper: Any,
    lower: Any,
    confidence: npt.NDArray[np.float64],
    accuracy: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
) -> str:
    """Draw one diagram into two axes; return its calibration error in words."""
    num_bins = len(counts)
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
    lower.bar(left, counts[filled] / counts.sum(), width, align="edge", color=GREY)
    return f"calibration error (ECE) {ece:.2%}"


@own_context()
def corruption_curves(
    names: Sequence[str], accuracy: npt.NDArray[np.float64], is_counted: npt.NDArray[np.bool_], title: str
) -> Figure:
    """Accuracy by severity of each corruption, and the mean of those that count.

    accuracy: (corruptions, severities) in 0..1. is_counted: (corruptions,). The lowest and highest curve are named.
    """
    severities = np.arange(1, accuracy.shape[1] + 1)
    figure = Figure(figsize=(7, 4.4), layout=layout())
    axis = figure.subplots()
    for row, counted in zip(accuracy, is_counted, strict=True):
        axis.plot(severities, row, color=GREY, alpha=0.6, lw=1, ls="-" if counted else ":")
    mean = accuracy[is_counted].mean(axis=0)
    axis.plot(severities, mean, "o-", color=TRAIN_COLOUR, lw=3, label=f"mean of {is_counted.sum()} corruptions")
    for index in {int(accuracy[:, -1].argmin()), int(accuracy[:, -1].argmax())}:
        text = printable(names[index] if len(names[index]) <= 24 else f"{names[index][:23]}…")
        style: dict[str, Any] = {"size": 8, "family": families(text), "parse_math": False}
        place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(text, (severities[-1], accuracy[index, -1]), **place, **style)
    axis.set(xlabel="severity", ylabel="accuracy", xticks=severities, ylim=(0, 1))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    _set_title(axis, title)
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
