"""How good the answers are: confusion matrix and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fastcifar.plotting.context import own_context
from fastcifar.plotting.style import DPI, GREY, HEAT, TRAIN_COLOUR, VAL_COLOUR, within
from fastcifar.plotting.text import families, printable
from fastcifar.plotting.tiles import wrapped

MOST_NUMBERED, MOST_LARGE, MOST_NAMED = 20, 50, 120
TITLE_POINTS = 10


@own_context()
def confusion(counts: npt.NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Of each true class (row), the share that was taken for each class (column); up to 20 classes with the counts.

    counts: (classes, classes). The colours leave out the diagonal, so that the mistakes can be seen.
    """
    num = len(names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = np.where(np.eye(num, dtype=bool), np.nan, share)
    side = min(max(4.5, 1.6 + 0.55 * num), 14)
    figure = Figure(figsize=(side + 1.2, side), layout=within())
    axis = figure.subplots()
    most = np.nanmax(wrong) if num > 1 and np.nanmax(wrong) > 0 else 1.0
    drawn = axis.imshow(wrong, cmap=HEAT, vmin=0, vmax=most)
    axis.set_facecolor("#9aa0a6")
    if num <= MOST_NUMBERED:
        for row in range(num):
            for column in range(num):
                light = row == column or share[row, column] > 0.6 * most
                colour = "black" if light else "white"
                axis.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", size=7, color=colour)
    if num <= MOST_NAMED:
        short = [printable(name if len(name) <= 16 else f"{name[:15]}…") for name in names]
        size, turn = (8, 45) if num <= MOST_LARGE else (5, 90)
        style: dict[str, Any] = {"size": size, "family": families("".join(short)), "parse_math": False}
        upright: dict[str, Any] = {"rotation": turn, "va": "top" if turn == 45 else "center"}
        axis.set_xticks(range(num), short, ha="right", rotation_mode="anchor", **upright, **style)
        axis.set_yticks(range(num), short, **style)
    axis.set(xlabel="predicted", ylabel="true")
    _draw_title(axis, title)
    bar = figure.colorbar(drawn, ax=axis, shrink=0.7, format=PercentFormatter(1.0))
    bar.set_label("share of the true class, mistakes only")
    return figure


def _draw_title(axis: Any, title: str) -> None:
    """Wrapped to three quarters of the figure's width, which is about that of the axes."""
    room = 0.75 * axis.figure.get_figwidth() * DPI
    lines = [line for part in title.split("\n") for line in wrapped(printable(part), room, TITLE_POINTS)]
    axis.set_title("\n".join(lines), size=TITLE_POINTS, family=families(title), parse_math=False)


@own_context()
def reliability(
    confidence: npt.NDArray[np.float64],
    accuracy: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    ece: float,
    title: str,
) -> Figure:
    """How often answers of each confidence are right, and how many there are.

    Each array is (bins,): mean confidence and accuracy of the answers in bins of equal width over 0..1.
    """
    num = len(counts)
    edges = np.linspace(0, 1, num + 1)
    figure = Figure(figsize=(5, 5), layout=within())
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    text = matplotlib.rcParams["text.color"]
    filled = counts > 0
    left, width = edges[:-1][filled], 1 / num
    gaps = confidence[filled] - accuracy[filled]
    bars: dict[str, Any] = {
        "width": width,
        "align": "edge",
        "edgecolor": matplotlib.rcParams["axes.facecolor"],
        "lw": 0.5,
    }
    upper.bar(left, accuracy[filled], color=TRAIN_COLOUR, label="share that is right", **bars)
    hatched: dict[str, Any] = {**bars, "edgecolor": VAL_COLOUR, "color": "none", "hatch": "////"}
    upper.bar(left, gaps, bottom=accuracy[filled], label="gap to confidence", **hatched)
    upper.plot([0, 1], [0, 1], ls="--", lw=1, color=text, alpha=0.6, label="as often right as sure")
    upper.set(ylim=(0, 1), xlim=(0, 1), ylabel="share that is right")
    _draw_title(upper, f"{title}\ncalibration error (ECE) {ece:.2%}".strip())
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.bar(left, counts[filled] / counts.sum(), width, align="edge", color=GREY)
    lower.set(xlabel="confidence of the answer", ylabel="share of images")
    for axis in (upper, lower):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
