"""Images a second, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from fastcifar.config import LOADERS
from fastcifar.plotting.context import own_context
from fastcifar.plotting.style import VAL_COLOUR, within


@own_context()
def rates(rows: Sequence[dict[str, Any]], note: str = "") -> Figure:
    """Images a second by loader, with the spread of the repeats; ours in colour.

    `rows` are those of `measure.Rate.row`; the row `limit-copy-cast`, if there is one, is drawn as a line.
    """
    shown = sorted((row for row in rows if row["images_per_s"]), key=lambda row: row["images_per_s"])
    limits = [row for row in shown if row["name"] == "limit-copy-cast"]
    shown = [row for row in shown if row not in limits]
    figure = Figure(figsize=(8, 0.6 + 0.36 * len(shown)), layout=within())
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
