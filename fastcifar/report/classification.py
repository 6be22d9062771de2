"""The predictions of a run on the test images: metrics, confusion matrix, calibration."""

from __future__ import annotations

from typing import Any

from fastcifar import plotting
from fastcifar.errors import DataError
from fastcifar.inference.metrics import compute_metrics
from fastcifar.inference.predictions import Predictions
from fastcifar.report.figures import drawing
from fastcifar.report.run_files import METRICS, WEIGHTS, RunFiles, clean
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
    confused = [(names[true], names[predicted], count) for true, predicted, count in metrics.most_confused()]
    return {
        "num_images": len(predictions),
        "metrics": metrics,
        "classes": [{"name": name, **row} for name, row in zip(names, metrics.per_class(), strict=True)],
        "confused": confused,
        "confusion": drawing(
            files,
            lambda: plotting.confusion_matrix(metrics.confusion, names, ""),
            f"Confusion matrix of {num_classes} classes: {metrics.describe_confused(names) or 'no mistakes'}",
        ),
        "reliability": drawing(
            files,
            lambda: plotting.reliability_diagram(*metrics.bins, ""),
            f"Accuracy by confidence; expected calibration error {metrics.ece:.2%}",
        ),
    }


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
