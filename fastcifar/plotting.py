"""The only importer of matplotlib. Every function returns a Figure; `save` writes one."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastcifar.config import LOADERS

if TYPE_CHECKING:
    from fastcifar.lr_find import LrCurve

HEAT = "inferno"  # even to the eye, also to the colour-blind
TRAIN_COLOUR, VAL_COLOUR = "#4477aa", "#cc6677"  # Paul Tol's "muted" scheme
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # ITU-R BT.709
ENLARGE = 6
MAX_COLUMNS = 6
DPI = 120


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whatever the name of `path`."""
    figure.savefig(path, format="png", dpi=DPI)


def curves(history: Sequence[dict[str, Any]]) -> Figure:
    """Loss, accuracy and learning rate by epoch; the best epoch is marked. `history` is that of results.csv."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    for axis, what in zip(axes, ("loss", "accuracy"), strict=False):
        axis.plot(
            epochs,
            [row[f"train_{what}"] for row in history],
            "o-",
            ms=3,
            color=TRAIN_COLOUR,
            label="training",
        )
        if history and history[0][f"val_{what}"] is not None:
            validation = [row[f"val_{what}"] for row in history]
            axis.plot(epochs, validation, "o-", ms=3, color=VAL_COLOUR, label="validation")
            best = int(np.argmax([row["val_accuracy"] for row in history]))
            axis.axvline(epochs[best], color="0.6", lw=1, ls=":", label=f"best: epoch {epochs[best]}")
        axis.set(title=what.capitalize(), xlabel="epoch")
        axis.legend(frameon=False)
    axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes[2].plot(epochs, [row["lr"] for row in history], "o-", ms=3, color="0.3")
    axes[2].set(
        title="Learning rate at the end of the epoch",
        xlabel="epoch",
        yscale="log" if _positive(history) else "linear",
    )
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _positive(history: Sequence[dict[str, Any]]) -> bool:
    rates = [row["lr"] for row in history]
    return bool(rates) and min(rates) > 0 and max(rates) / min(rates) > 10


def lr_curve(curve: LrCurve) -> Figure:
    """Loss over learning rate of a range test, raw and smoothed, with the suggestions or the reason for none."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(curve.rates, curve.losses, color="0.75", lw=1, label="loss")
    axis.plot(curve.rates, curve.smoothed, color=TRAIN_COLOUR, lw=2, label="smoothed")
    marks = zip(curve.suggestions.items(), ("o", "v", "s"), (VAL_COLOUR, "#999933", "#117733"), strict=False)
    for (name, rate), marker, colour in marks:
        height = np.interp(rate, curve.rates, curve.smoothed)
        axis.plot([rate], [height], marker, color=colour, ms=8, label=f"{name}: {rate:.3g}")
    axis.set(xlabel="learning rate", ylabel="training loss", title="Learning-rate range test")
    if len(curve.rates) > 1 and curve.rates[-1] > 100 * curve.rates[0]:
        axis.set_xscale("log")
    if len(curve.losses):
        low, start = curve.smoothed.min(), np.median(curve.smoothed[:10])
        axis.set_ylim(low - 0.1 * abs(start - low) - 0.05, start + max(start - low, 0.2))  # not the explosion
    note = f"No suggestion: {curve.why_not}" if curve.why_not else curve.ended
    figure.supxlabel("\n".join(textwrap.wrap(note, 100)), fontsize=8, color="0.4")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def overlay(image: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """A map laid over its image, the more opaque the stronger: both enlarged, the image without blur.

    The image is shown in grey, so that every colour is the map's.

    image: (H, W, 3) uint8. heat: (H', W') in 0..1, any multiple of (H, W). Returns (H', W', 3) in 0..1.
    """
    factor = heat.shape[0] // image.shape[0]
    grey = (image @ LUMINANCE / 255.0).repeat(factor, axis=0).repeat(factor, axis=1)[..., None]
    opacity = (0.75 * heat)[..., None]
    return (1 - opacity) * grey + opacity * colormaps[HEAT](heat)[..., :3]


def cam_grid(
    images: npt.NDArray[np.uint8],
    heats: npt.NDArray[np.float32],
    titles: Sequence[tuple[str, str]],
    heading: str,
) -> Figure:
    """Each image beside itself with its class activation map.

    images: (N, H, W, 3) uint8. heats: (N, H*k, W*k) in 0..1. titles: what each is, and what it was taken for.
    """
    num = len(images)
    columns = min(num, math.ceil(num**0.5), MAX_COLUMNS)
    rows = -(-num // columns)
    width, height, top, bottom = columns * 2.9, rows * 1.6, 0.62, 0.62
    figure = Figure(figsize=(max(width, 4.4), height + top + bottom))
    figure.suptitle(heading, y=1 - 0.3 / (height + top + bottom), va="center", fontsize=12, parse_math=False)
    total = height + top + bottom
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.02,
        right=0.98,
        top=1 - (top + 0.2) / total,
        bottom=bottom / total,
        hspace=0.22,
        wspace=0.08,
    )
    for i, (image, heat, (true, guess)) in enumerate(zip(images, heats, titles, strict=True)):
        cell = grid[i // columns, i % columns].subgridspec(1, 2, wspace=0.03)
        left, right = figure.add_subplot(cell[0]), figure.add_subplot(cell[1])
        left.imshow(image, interpolation="nearest")
        right.imshow(overlay(image, heat))
        left.set_title(_short(true), fontsize=8, pad=3, parse_math=False)
        right.set_title(_short(guess), fontsize=8, pad=3, color=VAL_COLOUR, parse_math=False)
        for axis in (left, right):
            axis.set_axis_off()
    bar = figure.add_axes((0.3, 0.3 / total, 0.4, 0.1 / total))
    figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), cax=bar, orientation="horizontal", ticks=[0, 0.5, 1])
    bar.tick_params(labelsize=7, length=2, pad=1)
    return figure


def _short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def rates(rows: Sequence[dict[str, Any]], note: str = "") -> Figure:
    """Images a second by loader, with the spread of the repeats; ours in colour.

    `rows` are those of `measure.Rate.row`; the row `limit-copy-cast`, if there is one, is drawn as a line.
    """
    shown = sorted((row for row in rows if row["images_per_s"]), key=lambda row: row["images_per_s"])
    limits = [row for row in shown if row["name"] == "limit-copy-cast"]
    shown = [row for row in shown if row not in limits]
    figure = Figure(figsize=(8, 0.6 + 0.36 * len(shown)), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(shown):
        ours = row["name"] in LOADERS
        middle = row["images_per_s"]
        spread = [[middle - row["images_per_s_min"]], [row["images_per_s_max"] - middle]]
        axis.barh(place, middle, color=VAL_COLOUR if ours else "#bbbbbb", xerr=spread, ecolor="#555555", capsize=2)
        axis.annotate(f"{middle:,}", (row["images_per_s_max"], place), (5, 0), textcoords="offset points", va="center")
    names = [f"fastcifar: {row['name']}" if row["name"] in LOADERS else row["name"] for row in shown]
    axis.set_yticks(range(len(shown)), names)
    axis.set_xscale("log")
    axis.set_xlim(right=3 * max(row["images_per_s_max"] for row in [*shown, *limits]))
    for row in limits:
        axis.axvline(row["images_per_s"], color="#555555", linestyle="--", linewidth=1)
        axis.text(row["images_per_s"] * 1.08, -0.3, "copy and cast alone", rotation=90, va="bottom")
    axis.set_xlabel(f"augmented images a second{note}")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
