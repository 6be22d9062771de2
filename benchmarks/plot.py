"""A line of results/loaders.jsonl, results/fast.jsonl or results/recipes.jsonl as a figure, by the name of the file.

    python -m benchmarks.plot docs/loaders.png --of EPYC
    python -m benchmarks.plot docs/fast.png --of hiverge
    python -m benchmarks.plot docs/recipes.png --of "fastcifar train"

`fast.png` shows each training, and the mean of each way to train with its 95% interval; `recipes.png` the accuracy of
reproduced experiments by epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from benchmarks import ROOT, Command, lines_of
from fastcifar.config import LOADERS
from fastcifar.errors import UsageError
from fastcifar.plotting import own_context, write_png
from fastcifar.plotting.style import GREY, TRAIN_COLOUR, VAL_COLOUR, layout

PEERS = {
    "stock-ffcv": "FFCV",
    "dali": "DALI, on the CPU",
    "airbench": "torch, whole epochs",
    "kornia": "Kornia",
    "albumentations-dataloader": "Albumentations",
    "torchvision-v1": "torchvision v1",
    "torchvision-v2": "torchvision v2",
}
"""Names of rows, as the figure shows them."""


@click.command(cls=Command)
@click.argument("figure", type=click.Path(path_type=Path))
@click.option("--of", "text", default="", help="The last line with this text in its command or machine.")
def main(figure: Path, text: str) -> None:
    """Draw the results whose name is that of the figure."""
    if figure.stem not in DRAWINGS:
        raise UsageError(f"figure is {figure.name!r}; expected one of: {', '.join(f'{name}.png' for name in DRAWINGS)}")
    results = ROOT / "benchmarks" / "results" / f"{figure.stem}.jsonl"
    lines = lines_of(results, "command", "machine", "rows")
    found = [about for about in lines if text in about["command"] or text in about["machine"]]
    if not found:
        raise UsageError(f"--of {text!r}: not in the command or machine of any line of {results.name}")
    write_png(figure, DRAWINGS[figure.stem](found[-1]))


def where(about: dict[str, Any]) -> str:
    """The machine of a line of results."""
    return about["gpu"] or f"{about['cores']} cores of an {about['machine']}"


def loaders(about: dict[str, Any]) -> Figure:
    """Images per second of loaders."""
    batch, dtype = about["data"].rsplit(", ", 2)[1:]
    return throughput(about["rows"], f"\n{where(about)}, {batch}, {dtype}")


@own_context()
def fast(about: dict[str, Any]) -> Figure:
    """Accuracy with test-time augmentation over seconds of training."""
    rows = [row for row in about["rows"] if row.get("trainings")]
    if not rows or any("each" not in row for row in rows):
        raise UsageError("that line does not have each training, as fast.png shows them; choose another by --of")
    figure = Figure(figsize=(7, 3.8), layout=layout())
    axis = figure.subplots()
    colours = [VAL_COLOUR, TRAIN_COLOUR, GREY, "#117733"]
    for row, colour in zip(rows, colours, strict=False):
        seconds = [each["train_seconds"] for each in row["each"]]
        axis.plot(seconds, [each["tta_accuracy"] for each in row["each"]], ".", color=colour, alpha=0.5, ms=6)
        mean, reach = (row["train_seconds"], row["tta_accuracy"]), row["tta_ci95"]
        label = f"{row['name']}: {mean[1]:.2%} in {mean[0]:.0f} s"
        axis.errorbar(*mean, yerr=reach, color=colour, marker="o", ms=7, capsize=4, label=label)
    axis.legend(frameon=False, loc="lower left")
    axis.margins(x=0.05, y=0.25)
    axis.set_xlim(left=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axis.set(xlabel=f"seconds of training ({where(about)})", ylabel="test accuracy, with test-time augmentation")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


@own_context()
def throughput(rows: Sequence[dict[str, Any]], note: str = "") -> Figure:
    """Images per second by loader, with the spread of the repeats; the loaders of fastcifar in colour.

    `rows` are those of `fastcifar bench`; the row `limit-copy-cast`, if there is one, is drawn as a line.
    """
    rows = sorted((row for row in rows if row["images_per_s"]), key=lambda row: row["images_per_s"])
    limits = [row for row in rows if row["name"] == "limit-copy-cast"]
    shown = [row for row in rows if row not in limits]
    figure = Figure(figsize=(8, 0.6 + 0.36 * len(shown)), layout=layout())
    axis = figure.subplots()
    for y, row in enumerate(shown):
        median, low, high = row["images_per_s"], row["images_per_s_min"], row["images_per_s_max"]
        colour = VAL_COLOUR if row["name"] in LOADERS else "#bbbbbb"
        axis.barh(y, median, color=colour, xerr=[[median - low], [high - median]], ecolor="#555555", capsize=2)
        axis.annotate(f"{median:,}", (high, y), (5, 0), textcoords="offset points", va="center")
    names = [f"fastcifar: {row['name']}" if row["name"] in LOADERS else row["name"] for row in shown]
    axis.set_yticks(range(len(shown)), [PEERS.get(name, name) for name in names])
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_xlim(0, 1.15 * max(row["images_per_s_max"] for row in rows))
    for row in limits:
        axis.axvline(row["images_per_s"], color="#555555", linestyle="--", linewidth=1, zorder=0)
        place = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right"}
        axis.annotate("copy and cast alone", (row["images_per_s"], -0.3), rotation=90, va="bottom", **place)
    axis.set_xlabel(f"augmented images per second{note}")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


@own_context()
def recipes(about: dict[str, Any]) -> Figure:
    """Accuracy of the training, validation and test images by epoch, and what was reported, of each recipe."""
    rows = [row for row in about["rows"] if "train_accuracies" in row]
    if not rows:
        raise UsageError("that line does not have each epoch, as recipes.png shows them; choose another by --of")
    num_lines = len(rows) // 3 + 1  # with a place for the legend
    figure = Figure(figsize=(8, 2.5 * num_lines), layout=layout())
    axes = figure.subplots(num_lines, 3, sharey=True).ravel()
    for axis, row in zip(axes, rows, strict=False):
        epochs = range(1, row["epochs"] + 1)
        axis.plot(epochs, row["train_accuracies"], color=TRAIN_COLOUR, label="training images, augmented")
        if "val_accuracies" in row:
            axis.plot(epochs, row["val_accuracies"], color=VAL_COLOUR, label="validation images")
        if "test_accuracy" in row:
            axis.plot(row["epochs"], row["test_accuracy"], "o", color=VAL_COLOUR, ms=5, label="test images")
        axis.axhline(row["reported"], color=GREY, ls="--", lw=1, label="reported, test images")
        axis.set_xlim(0, row["of_epochs"] + 1)
        axis.set_xlabel("epoch", fontsize="medium")
        axis.set_title(row["name"], fontsize="medium")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    for axis in axes[len(rows) :]:
        axis.axis("off")
    axes[0].set_ylim(0.5, 1.01)
    axes[len(rows)].legend(named.values(), named.keys(), frameon=False, loc="center left")
    return figure


DRAWINGS = {"loaders": loaders, "fast": fast, "recipes": recipes}


if __name__ == "__main__":
    main()
