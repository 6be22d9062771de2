"""How well does the ranking of `fastcifar audit` find labels that are wrong? Average precision against labels that
people gave, next to cleanlab on a plain ResNet-18, and to the loss of one network that saw the labels.

    python -m benchmarks.label_errors --data-dir data --labels-file labels.npz --labels train_aggregate

LABELS is an array of another label for each training image, in the order of the official archive; 'train' in the same
file are the official ones. All trainings see LABELS alone; a label is wrong where it differs from 'train'. In the
origins of the beton, number i of a class is the i-th image of that class in the archive. Every training is kept in
WORK, and a second call with the same options continues there. The scores are compared on one set of trainings.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import click
import numpy as np
from scipy.special import softmax

from benchmarks import Command, options, row, save_rows, show
from benchmarks.subprocesses import run_json
from fastcifar import open_beton
from fastcifar.audit.folds import OutOfFold, fold_config, out_of_fold
from fastcifar.audit.labels import METHODS, doubt_scores, label_issues, require_cleanlab
from fastcifar.bench.results import environment
from fastcifar.config import TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.errors import DataError
from fastcifar.inference.predictions import Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.reading import parse_yaml
from fastcifar.training import RunFolder, train
from fastcifar.training.device import choose_device

COLUMNS = ("name", "average_precision", "precision_at_1000", "accuracy", "train_seconds")


def official_positions(beton: Beton, official: np.ndarray) -> np.ndarray:
    """(N,) int64: the place in the official archive of each image of CIFAR-10 that was converted from class folders;
    official: (N,) the labels in that order."""
    numbers = [re.search(r"(\d+)\.\w+$", origin) for origin in beton.origins()]
    if len(official) != len(beton) or not all(numbers):
        raise DataError(f"{beton.path}: not CIFAR-10 with origins such as train/cat/0012.png; convert class folders")
    position = np.empty(len(beton), np.int64)
    for label in range(len(beton.class_names)):
        mine = np.flatnonzero(beton.labels == label)
        position[mine] = np.flatnonzero(official == label)[[int(numbers[index][1]) for index in mine]]  # type: ignore[index]
    assert np.array_equal(np.sort(position), np.arange(len(beton)))
    return position


def read_labels(file: Path, *names: str) -> list[np.ndarray]:
    """The int64 arrays of these names in an .npz file. Raises DataError if it does not have them."""
    try:
        with np.load(file) as arrays:
            return [arrays[name].astype(np.int64) for name in names]
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise DataError(f"{file}: expected an .npz file with the arrays {' and '.join(names)}") from error


def relabelled(beton: Beton, file: Path, name: str, num_images: int | None) -> tuple[Beton, np.ndarray]:
    """The beton with the labels `name`, and the official labels (N,); `num_images` of its images, all if None."""
    official, other = read_labels(file, "train", name)
    position = official_positions(beton, official)
    chosen = np.arange(len(beton))
    if num_images is not None:
        chosen = np.sort(np.random.default_rng(0).permutation(len(beton))[:num_images])
    some = replace(beton, offsets=beton.offsets[chosen], sizes=beton.sizes[chosen], labels=other[position][chosen])
    return some, beton.labels[chosen]


def seconds_of(runs: tuple[RunFolder, ...]) -> float:
    return sum(float(json.loads(run.metrics.read_text())["train_seconds"]) for run in runs)


def scores_of(given: np.ndarray, probabilities: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The scores that are compared, by name."""
    for method in METHODS:
        yield method, doubt_scores(probabilities, given, method)
    logs, rows = np.log(np.maximum(probabilities, 1e-12)), np.arange(len(given))
    own = logs[rows, given].copy()
    logs[rows, given] = -np.inf
    yield "log margin", logs.max(axis=1) - own


def in_sample(beton: Beton, config: TrainConfig, work: Path) -> tuple[Predictions, float]:
    """The predictions of one network on the images that it was trained on, and its training time."""
    run = RunFolder(work / "in-sample")
    if not run.metrics.is_file():
        resume = run if run.has_checkpoint else None
        train(config, runs_dir=work, name="in-sample", resume=resume, betons=[beton, beton], test=False)
    trained = TrainedRun(run, data_dir=config.data.data_dir, device=config.runtime.device)
    return trained.predict_beton(beton, np.arange(len(beton))), seconds_of((run,))


def plain_folds(result: OutOfFold, beton: Beton, work: Path, seconds: float, device: str) -> np.ndarray:
    """The probabilities of the plain ResNet-18, for the same folds, with `seconds` of training in all."""
    arrays, out = work / "arrays.npz", work / "plain.npy"
    images = beton.images(np.arange(len(beton)))
    np.savez(arrays, images=images, labels=beton.labels, folds=result.folds, mean=beton.mean, std=beton.std)
    each = seconds / len(result.runs)
    run_json("benchmarks.peers.plain_folds", *map(str, (arrays, each, device, out)))
    arrays.unlink()
    return np.load(out)


@click.command(cls=Command)
@click.option("--labels-file", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--labels", default="train_aggregate", show_default=True, help="Array of that file to train on.")
@click.option("--work", default=Path("build/label-errors"), show_default=True, type=click.Path(path_type=Path))
@click.option("--folds", default=4, show_default=True, type=click.IntRange(2))
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Sets of trainings.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change a setting of the trainings.")
@click.option("--num-images", type=click.IntRange(100), help="Some of the training images, for a trial.")
@click.option("--peers/--no-peers", default=True, show_default=True)
@options("data_dir", "device")
def main(
    labels_file: Path, labels: str, work: Path, folds: int, seeds: int, changes: tuple[str, ...],
    num_images: int | None, peers: bool, data_dir: str, device: str, save: bool, as_json: bool,
) -> None:  # fmt: skip
    """Average precision of rankings of label errors."""
    from sklearn.metrics import average_precision_score

    logging.basicConfig(level=logging.INFO, format="%(message)s")  # the trainings take most of an hour
    require_cleanlab()
    train_beton = open_beton(Path(data_dir) / "train.beton", in_memory=True)
    beton, official = relabelled(train_beton, labels_file, labels, num_images)
    given = beton.labels
    is_wrong = given != official
    base = work / "-".join([labels, str(num_images or len(beton)), f"{folds}-folds", *changes])
    rows: list[dict[str, Any]] = []

    def add(name: str, score: np.ndarray, predicted: np.ndarray, seconds: float) -> None:
        first = is_wrong[np.argsort(-score, kind="stable")[:1000]].mean()
        rows.append(
            row(
                name,
                average_precision=round(float(average_precision_score(is_wrong, score)), 4),
                precision_at_1000=round(float(first), 4),
                accuracy=round(float(np.mean(predicted == official)), 4),
                train_seconds=round(seconds, 1),
            )
        )

    of_seeds, total = [], 0.0
    for seed in range(seeds):
        folder = base / f"seed-{seed}"
        settings = {name: parse_yaml(value) for name, _, value in (change.partition("=") for change in changes)}
        config = fold_config(beton, folds=folds, seed=seed, device=device, data_dir=data_dir)
        config = config.with_settings(**settings)
        result = out_of_fold({"train": beton}, [], config, folds=folds, out=folder)
        seconds, probabilities = seconds_of(result.runs), result.train
        total += seconds
        of_seeds.append(np.log(np.maximum(probabilities, 1e-12)))
        predicted = probabilities.argmax(axis=1)
        for name, score in scores_of(given, probabilities):
            add(f"seed {seed}: {name}", score, predicted, seconds)
        listed = np.zeros(len(given))
        for issue in label_issues(probabilities, given, beton.class_names, "train"):
            listed[issue.image.index] = issue.score
        add(f"seed {seed}: those listed in issues.csv", listed, predicted, seconds)
        if peers and seed == 0:
            plain = plain_folds(result, beton, folder, seconds, device)
            for name, score in scores_of(given, plain):
                add(f"cleanlab on plain ResNet-18: {name}", score, plain.argmax(axis=1), seconds)
            seen, seen_seconds = in_sample(beton, config, folder)
            add("loss of one in-sample network", seen.losses, seen.predicted, seen_seconds)
    if seeds > 1:
        mean = softmax(np.mean(of_seeds, axis=0), axis=1).astype(np.float32)
        for name, score in scores_of(given, mean):
            add(f"mean of {seeds} seeds: {name}", score, mean.argmax(axis=1), total)
    show(rows, COLUMNS, as_json)
    if save:
        about = environment(data_dir, choose_device(device))
        facts = {"labels": labels, "wrong": float(is_wrong.mean()), "num_images": len(beton), "folds": folds}
        save_rows(__file__, rows, {**about, **facts, "changes": list(changes)})


if __name__ == "__main__":
    main()
