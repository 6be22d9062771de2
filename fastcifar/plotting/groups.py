"""Curves of several runs: their mean and spread by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from fastcifar.plotting.context import is_dark, own_context
from fastcifar.plotting.style import Figure, layout
from fastcifar.plotting.text import families, printable

COLOURS = {
    False: ("#332288", "#cc6677", "#117733", "#4477aa", "#7f7f1f", "#aa4499"),
    True: ("#88ccee", "#e08795", "#44aa99", "#ddcc77", "#b59ae0", "#c4c8cf"),
}
"""On white, and on dark: after Paul Tol's "muted" scheme, at least 3:1 as thin lines; markers tell them apart, too."""
MARKERS = "os^Dv*"
PANELS = ("loss", "accuracy")
History = Sequence[Mapping[str, float]]


@own_context()
def group_curves(histories: Mapping[str, Sequence[History]], panels: Sequence[str] = PANELS) -> Figure:
    """Loss and accuracy by epoch of each entry, or one of these: the mean of its runs, and a band of one standard
    deviation if there are several. Those of validation where all runs have it, else those of training.

    histories: by name, the rows of results.csv of each of its runs.
    """
    runs = [history for entry in histories.values() for history in entry if history]
    split = "val" if runs and all("val_loss" in history[0] for history in runs) else "train"
    figure = Figure(figsize=(4.5 * len(panels), 3.8), layout=layout())
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    styles = list(zip(COLOURS[is_dark()], MARKERS, strict=True))
    for axis, metric in zip(axes, panels, strict=True):
        for (name, entry), style in zip(histories.items(), cycle(styles), strict=False):
            _plot(axis, [history for history in entry if history], f"{split}_{metric}", printable(name), *style)
        axis.set_title(f"{'Validation' if split == 'val' else 'Training'} {metric}")
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if metric == "accuracy":
            axis.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g}%")
    if runs:
        lines = axes[0].lines
        legend = figure.legend(
            lines,
            [str(number) for number in range(len(lines))],
            loc="outside lower center",
            frameon=False,
            prop={"family": families("".join(histories))},
        )
        for text, line in zip(legend.get_texts(), lines, strict=True):  # names with a leading "_" are no labels
            text.set(text=line.get_label(), parse_math=False)
    return figure


def _plot(axis: Any, runs: Sequence[History], key: str, name: str, colour: str, marker: str) -> None:
    """Up to the last epoch that all runs have."""
    if not runs:
        return
    num_epochs = min(map(len, runs))
    values = np.array([[row[key] for row in history[:num_epochs]] for history in runs])  # (runs, epochs)
    epochs, mean = np.arange(1, num_epochs + 1), values.mean(axis=0)
    label = name if len(runs) == 1 else f"{name}: mean of {len(runs)} runs, ± 1 standard deviation"
    axis.plot(epochs, mean, marker=marker, ms=3.5, color=colour, label=label)
    if len(runs) > 1:
        std = values.std(axis=0, ddof=1)
        axis.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
