"""Curves of a training run and of an LR range test."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from fastcifar.plotting.context import own_context
from fastcifar.plotting.style import GREY, TRAIN_COLOUR, VAL_COLOUR, Figure, layout

if TYPE_CHECKING:
    from fastcifar.training.lr_curve import LrCurve


PANELS = ("loss", "accuracy", "lr")


@own_context()
def curves(history: Sequence[dict[str, Any]], panels: Sequence[str] = PANELS, best: int | None = None) -> Figure:
    """Loss, accuracy and learning rate by epoch, side by side, or some of these; the best epoch is marked.

    history: the rows of results.csv. best: the epoch of the best weights; by default that of the highest validation
    accuracy.
    """
    figure = Figure(figsize=(4 * len(panels), 3.6), layout=layout())
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        if panel == "lr":
            _plot_lr(axis, history)
        else:
            _plot_metric(axis, history, panel, best)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # one epoch: one tick
        if len(history) == 1:  # matplotlib would magnify the surroundings of a single point
            axis.set_xlim(history[0]["epoch"] - 0.5, history[0]["epoch"] + 0.5)
            axis.set_ylim(0, 1.25 * axis.dataLim.y1 or 1)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _plot_metric(axis: Any, history: Sequence[dict[str, Any]], name: str, best: int | None) -> None:
    epochs = [row["epoch"] for row in history]
    style = {"ms": 3, "marker": "o"}
    axis.plot(epochs, [row[f"train_{name}"] for row in history], color=TRAIN_COLOUR, label="training", **style)
    if history and history[0][f"val_{name}"] is not None:
        validation = [row[f"val_{name}"] for row in history]
        axis.plot(epochs, validation, color=VAL_COLOUR, label="validation", **style)
        if best not in epochs:  # not known, or not of this history
            best = epochs[int(np.argmax([row["val_accuracy"] for row in history]))]
        axis.axvline(best, color=GREY, lw=1, ls=":", label=f"best: epoch {best}")
    axis.set_title(name.capitalize())
    axis.legend(frameon=False)
    if name == "accuracy":
        axis.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g}%")


def _plot_lr(axis: Any, history: Sequence[dict[str, Any]]) -> None:
    lrs = [row["lr"] for row in history]
    axis.plot([row["epoch"] for row in history], lrs, "o-", ms=3, color=matplotlib.rcParams["text.color"])
    # not of a schedule that falls evenly, and ends near 0
    is_wide = bool(lrs) and min(lrs) > 0 and max(lrs) >= 10 * float(np.median(lrs))
    axis.set(title="Learning rate at the end of the epoch", yscale="log" if is_wide else "linear")
    if not is_wide:
        axis.set_ylim(bottom=0)


@own_context()
def lr_curve(curve: LrCurve, chosen: str | None = None) -> Figure:
    """Loss over learning rate of a range test, raw and smoothed, with the suggestions, the chosen one labelled, or why
    there is none."""
    figure = Figure(figsize=(7.5, 4.2), layout=layout())
    axis = figure.subplots()
    axis.plot(curve.rates, curve.losses, color=GREY, alpha=0.7, lw=1, label="loss")
    axis.plot(curve.smoothed_rates, curve.smoothed, color=TRAIN_COLOUR, lw=2, label="smoothed")
    markers = zip(curve.suggestions.items(), ("o", "v", "s"), (VAL_COLOUR, "#999933", "#117733"), strict=False)
    for (name, lr), marker, colour in markers:
        loss = np.interp(lr, curve.smoothed_rates, curve.smoothed)
        size = 10 if name == chosen else 6
        axis.plot([lr], [loss], marker, color=colour, ms=size, label=f"{name}: {lr:.3g}")
        if name == chosen:
            axis.axvline(lr, color=colour, lw=1, ls=":")
            box = {"facecolor": matplotlib.rcParams["axes.facecolor"], "edgecolor": "none", "pad": 1, "alpha": 0.8}
            axis.text(1.05 * lr, 0.02, f"chosen: {lr:.3g}", transform=axis.get_xaxis_transform(), bbox=box)
    axis.set(xlabel="learning rate", ylabel="training loss", title="LR range test")
    if len(curve.rates) > 1 and curve.rates[-1] > 100 * curve.rates[0]:
        axis.set_xscale("log")
    if len(curve.losses):
        low, start = curve.smoothed.min(), np.median(curve.smoothed[:10])
        axis.set_ylim(low - 0.1 * abs(start - low) - 0.05, start + max(start - low, 0.2))  # not the divergence
    note = f"No suggestion: {curve.failure_reason}" if curve.failure_reason else curve.stop_reason
    figure.supxlabel("\n".join(textwrap.wrap(note, 100)), fontsize=8)
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
