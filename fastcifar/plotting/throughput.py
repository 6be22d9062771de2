"""Throughput of loaders, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from fastcifar.config import LOADERS
from fastcifar.plotting.context import own_context
from fastcifar.plotting.style import VAL_COLOUR, layout


@own_context()
def throughput(rows: Sequence[dict[str, Any]], note: str = "") -> Figure:
    """Images per second by loader, with the spread of the repeats; the loaders of fastcifar in colour.

    `rows` are those of `fastcifar bench`; the row `limit-copy-cast`, if there is one, is drawn as a line.
    """
    rows = sorted((row for row in rows if row["images_per_s"]), key=lambda row: row["images_per_s"])
    limits = [row for row in rows if row["name"] == "limit-copy-cast"]
    loaders = [row for row in rows if row not in limits]
    figure = Figure(figsize=(8, 0.6 + 0.36 * len(loaders)), layout=layout())
    axis = figure.subplots()
    for y, row in enumerate(loaders):
        median, low, high = row["images_per_s"], row["images_per_s_min"], row["images_per_s_max"]
        colour = VAL_COLOUR if row["name"] in LOADERS else "#bbbbbb"
        axis.barh(y, median, color=colour, xerr=[[median - low], [high - median]], ecolor="#555555", capsize=2)
        axis.annotate(f"{median:,}", (high, y), (5, 0), textcoords="offset points", va="center")
    names = [f"fastcifar: {row['name']}" if row["name"] in LOADERS else row["name"] for row in loaders]
    axis.set_yticks(range(len(loaders)), names)
    axis.set_xscale("log")
    axis.set_xlim(right=3 * max(row["images_per_s_max"] for row in rows))
    for row in limits:
        axis.axvline(row["images_per_s"], color="#555555", linestyle="--", linewidth=1)
        axis.text(row["images_per_s"] * 1.08, -0.3, "copy and cast alone", rotation=90, va="bottom")
    axis.set_xlabel(f"augmented images per second{note}")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
