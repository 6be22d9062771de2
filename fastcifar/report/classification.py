"""The predictions of a run on the test images: metrics, confusion matrix, calibration."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from fastcifar import plotting
from fastcifar.errors import DataError
from fastcifar.inference.calibration import Calibration, not_held_out
from fastcifar.inference.evaluation import draw_reliability
from fastcifar.inference.metrics import MAX_MATRIX, Metrics, compute_metrics
from fastcifar.inference.predictions import Predictions
from fastcifar.io.paths import command_line
from fastcifar.report.figures import drawing
from fastcifar.report.run_files import METRICS, WEIGHTS, RunFiles, clean
from fastcifar.training.run_folder import RunFolder
from fastcifar.training.weights import read_info

PREDICTIONS = "predictions.npz"
MAX_CELLS, NUM_COLOURS = 20, 8
"""Above so many classes, the confusion matrix is a picture."""
MAX_EXAMPLES, MAX_COMMAND = 8, 300
Examples = dict[tuple[int, int], list[int]]


def classification(files: RunFiles) -> dict[str, Any] | None:
    """The metrics of predictions.npz, with the class names of the weights, or numbers where those cannot be read.

    confused: the most frequent mistakes, each as `_cell`. cells: see `_cells`; empty for many classes.
    """
    predictions = files.load(PREDICTIONS, Predictions.load)
    if predictions is None:
        return None
    num_classes = predictions.logits.shape[1]
    if not 2 <= num_classes <= MAX_MATRIX:
        raise DataError(f"{PREDICTIONS}: has {num_classes:,} classes; expected 2..{MAX_MATRIX:,}")
    weights_sha256 = predictions.weights_sha256
    names = files.attempt(lambda files: _class_names(files, num_classes, weights_sha256))
    names = names or [f"class {i}" for i in range(num_classes)]
    tested_on = (files.attempt(lambda files: files.mapping(METRICS)) or {}).get("test_data_sha256")
    if tested_on not in (None, predictions.data_sha256):
        files.note(f"{PREDICTIONS}: made from other images than those of {METRICS}")
    metrics = compute_metrics(predictions)
    calibration = files.attempt(lambda files: _calibration(files, weights_sha256))
    calibrated = compute_metrics(predictions.with_temperature(calibration.temperature)) if calibration else None
    examples = _examples(predictions)
    confused = [_cell(metrics, examples, true, predicted) for true, predicted, _ in metrics.most_confused()]
    cells, max_share = _cells(metrics, examples) if num_classes <= MAX_CELLS else ([], 0.0)
    return {
        "num_images": len(predictions),
        "data_sha256": predictions.data_sha256,
        "metrics": metrics,
        "scores": _scores(metrics, calibrated),
        "calibration": calibration,
        "not_calibrated": _not_calibrated(files, len(names)),
        "classes": [{"name": name, **row} for name, row in zip(names, metrics.per_class(), strict=True)],
        "names": names,
        "confused": confused,
        "cells": cells,
        "max_share": max_share,
        "confusion": None if cells else _draw_confusion(files, metrics, names),
        "explain_command": _explain_command(files),
        "reliability": [
            _draw_reliability(files, metrics, "before calibration" if calibrated else ""),
            *([_draw_reliability(files, calibrated, "after calibration")] if calibrated else []),
        ],
    }


def _draw_confusion(files: RunFiles, metrics: Metrics, names: list[str]) -> dict[str, Any] | None:
    alt = f"Confusion matrix of {len(names)} classes: {metrics.describe_confused(names) or 'no mistakes'}"
    return drawing(files, lambda: plotting.confusion_matrix(metrics.confusion, names, ""), alt)


def _draw_reliability(files: RunFiles, metrics: Metrics, title: str) -> dict[str, Any] | None:
    alt = f"Accuracy by confidence{title and f' {title}'}; expected calibration error {metrics.ece:.2%}"
    return drawing(files, lambda: draw_reliability(metrics, None, title), alt)


def _cells(metrics: Metrics, examples: Examples) -> tuple[list[list[dict[str, Any]]], float]:
    """The rows of the confusion matrix, and the largest share of a class that is a mistake of one kind.

    colour: 'hit' on the diagonal; else m0 (no image) to m8, by the share of the true class.
    """
    num_classes, share = len(metrics.confusion), metrics.confusion / np.maximum(metrics.num_images[:, None], 1)
    np.fill_diagonal(share, 0)
    max_share = float(share.max())
    levels = np.ceil(NUM_COLOURS * share / (max_share or 1)).astype(int)
    rows = [
        [
            {**_cell(metrics, examples, i, j), "colour": "hit" if i == j else f"m{levels[i, j]}"}
            for j in range(num_classes)
        ]
        for i in range(num_classes)
    ]
    return rows, max_share


def _cell(metrics: Metrics, examples: Examples, true: int, predicted: int) -> dict[str, Any]:
    """images: indices of some of the images, for `explain --select`."""
    return {
        "true": true,
        "predicted": predicted,
        "count": int(metrics.confusion[true, predicted]),
        "total": int(metrics.num_images[true]),
        "images": ",".join(map(str, examples[true, predicted])),
    }


def _examples(predictions: Predictions) -> Examples:
    """By true and predicted class, the test images of largest loss."""
    examples: Examples = defaultdict(list)
    for i in np.argsort(-predictions.losses, kind="stable").tolist():
        images = examples[int(predictions.labels[i]), int(predictions.predicted[i])]
        if len(images) < MAX_EXAMPLES and predictions.indices[i] >= 0:
            images.append(int(predictions.indices[i]))
    return examples


def _explain_command(files: RunFiles) -> str:
    """What explains some test images, without their indices; empty if it is too long to be shown."""
    command = command_line("fastcifar", "explain", files.root, "--select")
    return command if len(command) <= MAX_COMMAND else ""


def _scores(metrics: Metrics, calibrated: Metrics | None) -> list[tuple[str, str]]:
    low, high = metrics.interval
    return [
        ("Images", f"{len(metrics.predictions):,}"),
        ("Accuracy", f"{metrics.accuracy:.2%}"),
        ("95% interval", f"{low:.2%} to {high:.2%}"),
        *([] if metrics.top5_accuracy is None else [("Top-5 accuracy", f"{metrics.top5_accuracy:.2%}")]),
        ("Balanced accuracy", f"{metrics.balanced_accuracy:.2%}"),
        ("Macro F1", f"{metrics.macro_f1:.2%}"),
        ("Loss", f"{metrics.loss:.4f}"),
        *([("Calibrated loss", f"{calibrated.loss:.4f}")] if calibrated else []),
        ("Calibration error (ECE)", f"{metrics.ece:.2%}"),
        *([("Calibrated ECE", f"{calibrated.ece:.2%}")] if calibrated else []),
    ]


def _calibration(files: RunFiles, weights_sha256: str) -> Calibration | None:
    """That of the weights that made the predictions."""
    loaded = files.load("calibration.json", lambda path: Calibration.load(RunFolder(path.parent)))
    return loaded if loaded is not None and loaded.weights_sha256 == weights_sha256 else None


def _not_calibrated(files: RunFiles, num_classes: int) -> str:
    """Why a run without a calibration has none, as far as metrics.json says."""
    metrics = files.attempt(lambda files: files.mapping(METRICS)) or {}
    if metrics.get("num_val_images") == 0:
        return not_held_out(metrics.get("num_train_images"), num_classes)
    return "'fastcifar eval' calibrates on the validation images"


def _class_names(files: RunFiles, num_classes: int, weights_sha256: str) -> list[str] | None:
    path = files.root / WEIGHTS
    if not path.exists():
        return None
    names = read_info(path).class_names
    if len(names) != num_classes:
        raise DataError(f"{WEIGHTS}: names {len(names)} classes; {PREDICTIONS} has {num_classes}")
    if files.weights_sha256 != weights_sha256:
        files.note(f"{PREDICTIONS}: made with other weights than {WEIGHTS}; make it again with 'fastcifar eval'")
    return [clean(name) for name in names]
