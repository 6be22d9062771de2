"""`eval --on` a folder of corrupted images, as CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", 2019).

The folder holds `labels.npy` and an .npy file for each corruption, uint8 (5 N, H, W, 3): the same N images five times,
in order of severity.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastcifar import plotting
from fastcifar.converters.array_files import StoredArray, open_array, read_npy
from fastcifar.converters.array_images import read_labels
from fastcifar.converters.array_names import read_words
from fastcifar.converters.arrays import visible_entries
from fastcifar.data.image_files import ImageError
from fastcifar.errors import DataError, escape
from fastcifar.inference.calibration import Calibration
from fastcifar.inference.corruption_scores import (
    COLUMNS,
    MAX_CORRUPTIONS,
    NUM_SEVERITIES,
    CorruptionEvaluation,
    is_counted,
)
from fastcifar.inference.evaluation import find_calibration, make_folder
from fastcifar.inference.metrics import compute_metrics
from fastcifar.inference.predictions import Ints, Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.atomic import write_csv, write_text
from fastcifar.training.data import EVAL_BATCH_SIZE

LABELS = "labels.npy"


def is_corruption_folder(path: Path) -> bool:
    """True for a folder with `labels.npy` and other .npy files, none of whose names says images, labels or a split."""
    files = _corruptions(path)
    words = [read_words(file.stem) for file in files]
    return (path / LABELS).is_file() and bool(files) and not any(each.role or each.split for each in words)


def _corruptions(path: Path) -> list[Path]:
    entries = [entry for entry in visible_entries(path) if entry.suffix.lower() == ".npy" and entry.name != LABELS]
    if len(entries) > MAX_CORRUPTIONS:
        raise DataError(f"{path}: has {len(entries):,} .npy files; expected at most {MAX_CORRUPTIONS} corruptions")
    return entries


def evaluate_corruptions(
    trained: TrainedRun, path: Path, name: str, about: dict[str, Any], tta: str, command: str
) -> CorruptionEvaluation:
    """Evaluate a run on each corruption and severity; metrics.json, corruptions.csv and corruptions.png go to
    eval/<name>[-<tta>]/ in its folder. One corruption is read at a time, in blocks. Raises DataError.

    For the arguments see `fastcifar.inference.evaluation.write_evaluation`.
    """
    labels = _read_labels(trained, path)
    files = _corruptions(path)
    for file in files:  # before the first takes its minutes
        _check_header(trained, file, len(labels))
    calibration, not_calibrated = find_calibration(trained, tta)
    scores: list[list[tuple[float, ...]]] = []
    for number, file in enumerate(files, 1):
        trained.reporter.begin(f"{file.stem} ({number}/{len(files)})", len(labels))
        predictions = _predict(trained, file, labels, tta)
        severities = np.split(np.arange(len(labels)), NUM_SEVERITIES)
        scores.append([_scores(predictions.select(positions), calibration) for positions in severities])
    columns = np.moveaxis(np.array(scores), -1, 0)  # (corruptions, 5, scores) -> (scores, corruptions, 5)
    evaluation = CorruptionEvaluation(
        corruptions=tuple(escape(file.stem) for file in files),
        num_images=len(labels) // NUM_SEVERITIES,
        accuracy=columns[0],
        loss=columns[1],
        ece=columns[2],
        calibrated_loss=columns[3] if calibration else None,
        calibrated_ece=columns[4] if calibration else None,
        calibration=calibration,
        not_calibrated=not_calibrated,
    )
    folder = make_folder(trained.run, name, tta)
    described = {"run": trained.run.path.name, **about, "tta": tta, **evaluation.to_dict()}
    described |= {"weights_sha256": trained.weights_sha256}
    write_text(folder / "metrics.json", json.dumps(described, indent=1, allow_nan=False) + "\n")
    write_csv(folder / "corruptions.csv", COLUMNS, evaluation.to_rows())
    title = f"{trained.run.path.name}: {name}" + ("" if tta == "none" else f", test-time augmentation {tta}")
    names, accuracy = evaluation.corruptions, evaluation.accuracy
    draw = partial(plotting.corruption_curves, names, accuracy, is_counted(names), title)
    with plotting.figure_writer(folder, f"draw it with: {command}") as write:
        figure = write("corruptions.png", draw)
    written = (folder / "metrics.json", folder / "corruptions.csv", figure)
    return replace(evaluation, files=tuple(filter(None, written)))


def _read_labels(trained: TrainedRun, path: Path) -> Ints:
    """(5 N,) int64. Raises DataError unless they are classes of the network, the same five times."""
    with ExitStack() as resources:
        file = path / LABELS
        indices, names = read_labels(file, open_array(file, read_npy(file, resources)[0], resources))
    labels = trained.match_classes(file, names, numbered=True)[indices]
    blocks = len(labels) // NUM_SEVERITIES
    if len(labels) % NUM_SEVERITIES or (labels.reshape(NUM_SEVERITIES, blocks) != labels[:blocks]).any():
        raise DataError(
            f"{file}: its {len(labels):,} labels are not the same {NUM_SEVERITIES} times; expected the same images for "
            f"each of the {NUM_SEVERITIES} severities"
        )
    return labels


def _check_header(trained: TrainedRun, file: Path, num_labels: int) -> None:
    with ExitStack() as resources:
        _open(trained, file, num_labels, resources)


def _open(trained: TrainedRun, file: Path, num_labels: int, resources: ExitStack) -> StoredArray:
    array = open_array(file, read_npy(file, resources)[0], resources)
    header = array.header
    if header.dtype != np.uint8 or header.is_fortran or len(header.shape) != 4:
        order = " in column-major order" if header.is_fortran else ""
        raise DataError(f"{file}: has {header.dtype} of shape {header.shape}{order}; expected uint8 (N, H, W, 3)")
    trained.require_shape(file, array.item_shape)
    if len(array) != num_labels:
        raise DataError(
            f"{file}: has {len(array):,} images, and {LABELS} {num_labels:,} labels; expected a label for each image: "
            f"{NUM_SEVERITIES} blocks of equal size, one for each severity"
        )
    return array


def _predict(trained: TrainedRun, file: Path, labels: Ints, tta: str) -> Predictions:
    logits = []
    with ExitStack() as resources:
        array = _open(trained, file, len(labels), resources)
        for start in range(0, len(labels), EVAL_BATCH_SIZE):
            try:
                images = array.items(start, min(start + EVAL_BATCH_SIZE, len(labels))).copy()  # torch's is writable
            except ImageError as error:
                raise DataError(f"{file}: {error}") from error
            logits.append(trained.logits(images, tta=tta))
            trained.reporter.advance(len(images))
    return Predictions(np.arange(len(labels)), labels, np.concatenate(logits), trained.weights_sha256)


def _scores(predictions: Predictions, calibration: Calibration | None) -> tuple[float, ...]:
    """Accuracy, loss and calibration error; and the last two of the calibrated probabilities."""
    plain = compute_metrics(predictions)
    if calibration is None:
        return plain.accuracy, plain.loss, plain.ece
    scaled = compute_metrics(predictions.with_temperature(calibration.temperature))
    return plain.accuracy, plain.loss, plain.ece, scaled.loss, scaled.ece
