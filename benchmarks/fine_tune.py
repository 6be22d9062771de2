"""Do pretrained weights help with few images? `small` on 100 images of each of five classes, from both starts.

    python -m benchmarks.fine_tune --data-dir data --seeds 3 --json

The network is pretrained on all training images of the first half of the classes (recipe `fast`, some epochs more). The
other half is the task: 100 training images of each class, another sample for each seed, and all test images of those
classes. Each way trains for the same number of steps, with the same settings, at the learning rate of a grid that is
best for it on other training images of the task, which no final training or score uses.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import click
import numpy as np

from benchmarks import Command, options, save_rows, show
from benchmarks.subprocesses import run_json
from fastcifar import convert, open_beton
from fastcifar.bench.results import environment
from fastcifar.data.beton import Beton
from fastcifar.training.device import choose_device

WAYS = {"from scratch": "", "fine-tuned": "--init", "fine-tuned, head alone": "--init --freeze-until head"}
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
SETTINGS = "--model small --optimizer sgd --sched onecycle --batch-size 100 --val-size 0"
EACH = 100
"""Training images of each class."""
NUM_TO_CHOOSE = 200
"""Images of each class that the learning rate is chosen on."""


def samples(beton: Beton, labels: range, per_class: slice, seed: int) -> list[tuple[Any, str]]:
    """(image, class name) of those classes: for each, this slice of its images in the random order of the seed."""
    order = np.random.default_rng(seed).permutation(len(beton))
    chosen = np.concatenate([order[beton.labels[order] == label][per_class] for label in labels])
    names = [beton.class_names[label] for label in beton.labels[chosen]]
    return list(zip(beton.images(chosen), names, strict=True))


def write_data(folder: Path, data_dir: str, num_seeds: int) -> tuple[Path, Path, list[Path]]:
    """The data to pretrain on, to choose the rate with, and for the trainings of each seed."""
    train, test = (open_beton(Path(data_dir) / f"{split}.beton") for split in ("train", "test"))
    half = len(train.class_names) // 2
    first, second = range(half), range(half, len(train.class_names))
    everything, few = slice(None), slice(EACH)
    convert(samples(train, first, everything, 0), folder / "pretrain", test=samples(test, first, everything, 0))
    others = samples(train, second, slice(EACH, EACH + NUM_TO_CHOOSE), num_seeds)
    convert(samples(train, second, few, num_seeds), folder / "choose", test=others)
    tasks = [folder / f"task{seed}" for seed in range(num_seeds)]
    for seed, task in enumerate(tasks):
        convert(samples(train, second, few, seed), task, test=samples(test, second, everything, 0))
    return folder / "pretrain", folder / "choose", tasks


@click.command(cls=Command)
@click.option("--pretrain-epochs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--epochs", default=100, show_default=True, type=click.IntRange(1), help="Of 5 steps, for each way.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Trainings of each way.")
@options("data_dir", "device")
def main(
    data_dir: str, pretrain_epochs: int, epochs: int, seeds: int, device: str, save: bool, as_json: bool
) -> None:  # fmt: skip
    """Accuracies on five classes with 500 training images."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        pretrain, choose, tasks = write_data(folder, data_dir, seeds)

        def accuracy(data: Path, flags: str, *more: str) -> dict[str, Any]:
            common = ["--data-dir", str(data), "--runs-dir", str(folder / "runs"), "--device", device, "--json"]
            return run_json("fastcifar", "train", *common, *flags.split(), *more)

        first = accuracy(pretrain, f"--recipe fast --epochs {pretrain_epochs} --name first")
        rows = []
        for name, flags in WAYS.items():
            way = f"{SETTINGS} --epochs {epochs} {flags}".replace("--init", f"--init {folder / 'runs' / 'first'}")
            chosen_on = {lr: accuracy(choose, way, "--lr", str(lr))["test_accuracy"] for lr in RATES}
            lr = max(chosen_on, key=lambda rate: chosen_on[rate])
            results = [accuracy(task, way, "--lr", str(lr), "--seed", str(i)) for i, task in enumerate(tasks)]
            scores = [result["test_accuracy"] for result in results]
            row: dict[str, Any] = {"name": name, "trainings": len(scores), "steps": results[0]["steps"], "lr": lr}
            row |= {"test_accuracy": mean(scores), "min": min(scores), "max": max(scores)}
            row |= {"train_seconds": median(result["train_seconds"] for result in results)}
            row |= {"trained_parameters": results[0]["num_trained_parameters"], "chosen_on": chosen_on}
            rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    pretrained = {"name": "pretrained, on its own classes", "trainings": 1, "steps": first["steps"]}
    rows.append({**pretrained, **{key: round(first[key], 4) for key in ("test_accuracy", "train_seconds", "lr")}})
    columns = ("name", "test_accuracy", "min", "max", "lr", "steps", "train_seconds", "trained_parameters", "trainings")
    show(rows, columns, as_json)
    if save:
        save_rows(__file__, rows, environment(data_dir, choose_device(device)))


if __name__ == "__main__":
    main()
