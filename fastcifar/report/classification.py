"""The predictions of a run on the test images: metrics, confusion matrix, calibration."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastcifar.errors import CheckpointError, DataError
from fastcifar.inference.metrics import ClassMetrics, Metrics, compute_metrics
from fastcifar.inference.predictions import Predictions
from fastcifar.report.figures import Drawing, drawing
from fastcifar.report.run_files import WEIGHTS, RunFiles, clean, reading
from fastcifar.report.training import METRICS
from fastcifar.training.weights import read_info

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREDICTIONS = "predictions.npz"
MAX_CLASSES = 1_000


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The metrics of predictions.npz and their figures."""

    num_images: int
    metrics: Metrics
    classes: tuple[ClassMetrics, ...]
    confused: tuple[tuple[str, str, int], ...]
    """True class, predicted class, number of images; the most frequent first."""
    confusion: Drawing | None
    reliability: Drawing | None


def classification(files: RunFiles) -> Classification | None:
    """The metrics of predictions.npz, with the class names of the weights, or numbers where those cannot be read."""
    if not os.path.lexists(files.root / PREDICTIONS):
        return None
    with reading(PREDICTIONS):
        predictions = Predictions.load(files.root / PREDICTIONS)
    num_classes = predictions.logits.shape[1]
    if not 2 <= num_classes <= MAX_CLASSES:
        raise DataError(f"{PREDICTIONS}: has {num_classes:,} classes; expected 2..{MAX_CLASSES:,}")
    names = files.attempt(lambda files: _class_names(files, num_classes, predictions.weights_sha256))
    tested_on = (files.attempt(lambda files: files.mapping(METRICS)) or {}).get("test_data_sha256")
    if tested_on not in (None, predictions.data_sha256):
        files.note(f"{PREDICTIONS}: made from other images than those of {METRICS}")
    return _draw(files, compute_metrics(predictions), names or [f"class {i}" for i in range(num_classes)])


def _class_names(files: RunFiles, num_classes: int, weights_sha256: str) -> list[str] | None:
    path = files.root / WEIGHTS
    if not path.exists():
        return None
    try:
        names = read_info(path).class_names
    except CheckpointError as error:
        raise DataError(f"{WEIGHTS}: damaged: {str(error).removeprefix(f'{path}: ')}") from error
    if len(names) != num_classes:
        raise DataError(f"{WEIGHTS}: names {len(names)} classes; {PREDICTIONS} has {num_classes}")
    if files.weights_sha256 != weights_sha256:
        files.note(f"{PREDICTIONS}: made with other weights than {WEIGHTS}; make it again with 'fastcifar eval'")
    return [clean(name) for name in names]


def _draw(files: RunFiles, metrics: Metrics, names: list[str]) -> Classification:
    def confusion() -> Figure:
        from fastcifar import plotting

        return plotting.confusion_matrix(metrics.confusion, plotting.class_labels(names), "")

    def reliability() -> Figure:
        from fastcifar import plotting

        return plotting.reliability_diagram(metrics.bin_confidence, metrics.bin_accuracy, metrics.bin_count, "")

    pairs = tuple((names[true], names[predicted], count) for true, predicted, count in metrics.most_confused())
    summary = "; ".join(f"{true} predicted as {predicted} {count:,} times" for true, predicted, count in pairs[:3])
    confusion_alt = f"Confusion matrix of {len(names)} classes: {summary or 'no mistakes'}"
    reliability_alt = f"Accuracy by confidence; expected calibration error {metrics.ece:.2%}"
    return Classification(
        num_images=int(metrics.confusion.sum()),
        metrics=metrics,
        classes=tuple(metrics.per_class(names)),
        confused=pairs,
        confusion=drawing(files, confusion, confusion_alt),
        reliability=drawing(files, reliability, reliability_alt),
    )
