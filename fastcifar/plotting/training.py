"""Curves of a training run and of a range test."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastcifar.plotting.style import TRAIN_COLOUR, VAL_COLOUR

if TYPE_CHECKING:
    from fastcifar.lr_find import LrCurve


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
