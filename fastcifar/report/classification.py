"""The predictions of a run on the test images: metrics, confusion matrix, calibration."""

from __future__ import annotations

from typing import Any

from fastcifar import plotting
from fastcifar.errors import DataError
from fastcifar.inference.calibration import NOT_HELD_OUT, Calibration
from fastcifar.inference.evaluation import draw_reliability
from fastcifar.inference.metrics import Metrics, compute_metrics
from fastcifar.inference.predictions import Predictions
from fastcifar.report.figures import drawing
from fastcifar.report.run_files import METRICS, WEIGHTS, RunFiles, clean
from fastcifar.training.run_folder import RunFolder
from fastcifar.training.weights import read_info

PREDICTIONS = "predictions.npz"
MAX_CLASSES = 1_000


def classification(files: RunFiles) -> dict[str, Any] | None:
    """The metrics of predictions.npz, with the class names of the weights, or numbers where those cannot be read.

    confused: (true class, predicted class, number of images), the most frequent first.
    """
    predictions = files.load(PREDICTIONS, Predictions.load)
    if predictions is None:
        return None
    num_classes = predictions.logits.shape[1]
    if not 2 <= num_classes <= MAX_CLASSES:
        raise DataError(f"{PREDICTIONS}: has {num_classes:,} classes; expected 2..{MAX_CLASSES:,}")
    weights_sha256 = predictions.weights_sha256
    names = files.attempt(lambda files: _class_names(files, num_classes, weights_sha256))
    names = names or [f"class {i}" for i in range(num_classes)]
    tested_on = (files.attempt(lambda files: files.mapping(METRICS)) or {}).get("test_data_sha256")
    if tested_on not in (None, predictions.data_sha256):
        files.note(f"{PREDICTIONS}: made from other images than those of {METRICS}")
    metrics = compute_metrics(predictions)
    calibration = files.attempt(lambda files: _calibration(files, weights_sha256))
    calibrated = compute_metrics(predictions.with_temperature(calibration.temperature)) if calibration else None
    confused = [(names[true], names[predicted], count) for true, predicted, count in metrics.most_confused()]
    return {
        "num_images": len(predictions),
        "metrics": metrics,
        "scores": _scores(metrics, calibrated),
        "calibration": calibration,
        "not_calibrated": _not_calibrated(files),
        "classes": [{"name": name, **row} for name, row in zip(names, metrics.per_class(), strict=True)],
        "confused": confused,
        "confusion": drawing(
            files,
            lambda: plotting.confusion_matrix(metrics.confusion, names, ""),
            f"Confusion matrix of {num_classes} classes: {metrics.describe_confused(names) or 'no mistakes'}",
        ),
        "reliability": drawing(
            files,
            lambda: draw_reliability(metrics, calibrated, ""),
            f"Accuracy by confidence; expected calibration error {metrics.ece:.2%}"
            + (f", {calibrated.ece:.2%} after calibration" if calibrated else ""),
        ),
    }


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


def _not_calibrated(files: RunFiles) -> str:
    """Why a run without a calibration has none, as far as metrics.json says."""
    num_val_images = (files.attempt(lambda files: files.mapping(METRICS)) or {}).get("num_val_images")
    return NOT_HELD_OUT if num_val_images == 0 else "'fastcifar eval' calibrates on the validation images"


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
