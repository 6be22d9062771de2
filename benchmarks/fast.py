"""Training time and accuracy: the recipe `fast` next to airbench's 94% script on the same machine and images.

    python -m benchmarks.fast --data-dir data --airbench cifar10-airbench --json

`--airbench` is a checkout of github.com/KellerJordan/cifar10-airbench; without one its row is left out, by name. Both
are trained once for each seed, in turn. `train_seconds` is training alone, without evaluation, for both.
`--without TRICK` adds the recipe without one of the things that make it fast, to see what that one brings.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from benchmarks import Command, options, save_rows, show
from benchmarks.subprocesses import run_json
from fastcifar.bench.results import environment

WITHOUT = {
    "progressive": "--progressive=",
    "muon": "--optimizer sgd --lr 0.5 --momentum 0.9 --weight-decay 0.0005 --pct-start 0.2",
    "sgd-for-the-rest": "--aux-optimizer adamw --aux-lr 0.01 --bias-lr 0.01 --weight-decay 0",
    "label-smoothing": "--label-smoothing 0",
    "alternating-flips": "--flip-mode random",
    "reflected-crops": "--padding-mode zero",
    "bf16": "--amp off",
}
"""Flags that replace each trick by the usual method."""
KEYS = ("train_seconds", "test_accuracy", "tta_accuracy")


@click.command(cls=Command)
@click.option("--recipe", default="fast", show_default=True)
@click.option("--airbench", type=click.Path(exists=True, file_okay=False), help="Checkout of cifar10-airbench.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Trainings of each.")
@click.option("--without", multiple=True, type=click.Choice([*WITHOUT, "all"]), help="Leave this out, in a row more.")
@options("data_dir", "device")
def main(
    data_dir: str, recipe: str, airbench: str | None, device: str, seeds: int, without: tuple[str, ...], save: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Time and accuracy of trainings."""
    data = str(Path(data_dir).resolve())
    left_out = tuple(WITHOUT) if "all" in without else without
    ways = {f"fastcifar {recipe}": ""}
    ways |= {f"fastcifar {recipe}, without {name}": WITHOUT[name] for name in left_out}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in (*ways, "airbench94_muon")}
    with tempfile.TemporaryDirectory() as runs:
        flags = ["--recipe", recipe, "--data-dir", data, "--runs-dir", runs, "--device", device, "--json"]
        for seed in range(seeds):
            for name, changes in ways.items():
                ours = ["fastcifar", "train", *flags, "--seed", str(seed), *changes.split()]
                results[name].append(run_json(*ours))
            if airbench is not None:
                theirs = ["benchmarks.peers.airbench94", str(Path(airbench).resolve()), data]
                results["airbench94_muon"].append(run_json(*theirs, device, str(seed)))
    rows = []
    for name, metrics in results.items():
        row: dict[str, Any] = {"name": name, "trainings": len(metrics)}
        row |= {key: round(median(each[key] for each in metrics), 4) if metrics else None for key in KEYS}
        rows.append(row if metrics else {**row, "note": "skipped: no --airbench"})
    columns = ("name", *KEYS, "trainings", "note")
    show(rows, columns, as_json)
    if save:
        save_rows(__file__, rows, environment(data_dir, torch.device(device)))


if __name__ == "__main__":
    main()
