"""Curves of a training run and of a range test."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastcifar.plotting.context import own_context
from fastcifar.plotting.style import GREY, TRAIN_COLOUR, VAL_COLOUR, within

if TYPE_CHECKING:
    from fastcifar.training.lr_finder import LrCurve


PANELS = ("loss", "accuracy", "lr")


@own_context()
def curves(history: Sequence[dict[str, Any]], panels: Sequence[str] = PANELS) -> Figure:
    """Loss, accuracy and learning rate by epoch, side by side, or some of these; the best epoch is marked.

    `history` is that of results.csv.
    """
    figure = Figure(figsize=(4 * len(panels), 3.6), layout=within())
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, what in zip(axes, panels, strict=True):
        if what == "lr":
            _draw_rates(axis, history)
        else:
            _draw_both(axis, history, what)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # one epoch: one tick
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_both(axis: Any, history: Sequence[dict[str, Any]], what: str) -> None:
    epochs = [row["epoch"] for row in history]
    marked = {"ms": 3, "marker": "o"}
    axis.plot(epochs, [row[f"train_{what}"] for row in history], color=TRAIN_COLOUR, label="training", **marked)
    if history and history[0][f"val_{what}"] is not None:
        validation = [row[f"val_{what}"] for row in history]
        axis.plot(epochs, validation, color=VAL_COLOUR, label="validation", **marked)
        best = int(np.argmax([row["val_accuracy"] for row in history]))
        axis.axvline(epochs[best], color=GREY, lw=1, ls=":", label=f"best: epoch {epochs[best]}")
    axis.set_title(what.capitalize())
    axis.legend(frameon=False)
    if what == "accuracy":
        axis.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g}%")


def _draw_rates(axis: Any, history: Sequence[dict[str, Any]]) -> None:
    rates = [row["lr"] for row in history]
    axis.plot([row["epoch"] for row in history], rates, "o-", ms=3, color=matplotlib.rcParams["text.color"])
    axis.set(title="Learning rate at the end of the epoch", yscale="log" if _positive(history) else "linear")


def _positive(history: Sequence[dict[str, Any]]) -> bool:
    rates = [row["lr"] for row in history]
    return bool(rates) and min(rates) > 0 and max(rates) / min(rates) > 10


@own_context()
def lr_curve(curve: LrCurve, chosen: str | None = None) -> Figure:
    """Loss over learning rate of a range test, raw and smoothed, with the suggestions, the chosen one labelled, or the
    reason for none."""
    figure = Figure(figsize=(7.5, 4.2), layout=within())
    axis = figure.subplots()
    axis.plot(curve.rates, curve.losses, color=GREY, alpha=0.7, lw=1, label="loss")
    axis.plot(curve.smoothed_rates, curve.smoothed, color=TRAIN_COLOUR, lw=2, label="smoothed")
    marks = zip(curve.suggestions.items(), ("o", "v", "s"), (VAL_COLOUR, "#999933", "#117733"), strict=False)
    for (name, rate), marker, colour in marks:
        height = np.interp(rate, curve.smoothed_rates, curve.smoothed)
        taken = name == chosen
        axis.plot([rate], [height], marker, color=colour, ms=10 if taken else 6, label=f"{name}: {rate:.3g}")
        if taken:
            axis.axvline(rate, color=colour, lw=1, ls=":")
            axis.annotate(
                f"chosen: {rate:.3g}",
                (rate, 0),
                xycoords=axis.get_xaxis_transform(),
                xytext=(5, 5),
                textcoords="offset points",
                color=colour,
                bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            )
    axis.set(xlabel="learning rate", ylabel="training loss", title="Learning-rate range test")
    if len(curve.rates) > 1 and curve.rates[-1] > 100 * curve.rates[0]:
        axis.set_xscale("log")
    if len(curve.losses):
        low, start = curve.smoothed.min(), np.median(curve.smoothed[:10])
        axis.set_ylim(low - 0.1 * abs(start - low) - 0.05, start + max(start - low, 0.2))  # not the explosion
    note = f"No suggestion: {curve.why_not}" if curve.why_not else curve.ended
    figure.supxlabel("\n".join(textwrap.wrap(note, 100)), fontsize=8)
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
