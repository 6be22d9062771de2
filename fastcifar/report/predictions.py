"""What a run answered on the test images: scores, each class, confusion, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastcifar.errors import CheckpointError, DataError
from fastcifar.inference.metrics import Scores, score
from fastcifar.report.figures import Drawing, drawing
from fastcifar.report.run_files import WEIGHTS, RunFiles, clean
from fastcifar.report.training import METRICS
from fastcifar.training.checkpoint import MOST_WEIGHTS, read_info

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREDICTIONS = "predictions.npz"
MOST_CLASSES = 1_000


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class of the table; shares are None where there is nothing to share."""

    name: str
    precision: float | None
    recall: float | None
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Scored:
    """predictions.npz, scored."""

    num_images: int
    accuracy: float
    loss: float
    ece: float
    classes: tuple[ClassRow, ...]
    confused: tuple[tuple[str, str, int], ...]
    """True class, predicted class, number of images; the most frequent first."""
    confusion: Drawing | None
    reliability: Drawing | None


def scored(files: RunFiles) -> Scored | None:
    """Score predictions.npz with the class names that stand in the weights, or numbers where those cannot be read."""
    found = files.arrays(PREDICTIONS, ("index", "label", "logits", "weights_sha256", "data_sha256"))
    if found is None:
        return None
    label, logits = found["label"], found["logits"]
    if logits.ndim != 2 or label.shape != (len(logits),) or not len(label) or label.dtype.kind not in "iu":
        raise DataError(f"{PREDICTIONS}: damaged: labels {label.shape} and logits {logits.shape} do not fit together")
    num = logits.shape[1]
    if not 2 <= num <= MOST_CLASSES:
        raise DataError(f"{PREDICTIONS}: has {num:,} classes; expected 2..{MOST_CLASSES:,}")
    if logits.dtype != np.float32 or not np.isfinite(logits).all():
        raise DataError(f"{PREDICTIONS}: damaged: its logits are not finite float32 numbers")
    if label.min() < 0 or label.max() >= num:
        raise DataError(f"{PREDICTIONS}: damaged: it has labels {label.min()}..{label.max()} and {num} classes")
    names = files.attempt(lambda files: _class_names(files, num, str(found["weights_sha256"])))
    tested_on = (files.attempt(lambda files: files.facts(METRICS)) or {}).get("test_data_sha256")
    if tested_on not in (None, str(found["data_sha256"])):
        files.note(f"{PREDICTIONS}: made of other images than those that metrics.json scores")
    scores = score(logits.copy(), label.astype(np.int64), num)
    return _described(files, scores, names or tuple(f"class {i}" for i in range(num)))


def _class_names(files: RunFiles, num: int, sha256: str) -> tuple[str, ...] | None:
    path = files.checked(WEIGHTS, MOST_WEIGHTS)
    if path is None:
        return None
    try:
        names = read_info(path).class_names
    except CheckpointError as error:
        raise DataError(f"{WEIGHTS}: damaged: {str(error).removeprefix(f'{path}: ')}") from error
    if len(names) != num or not all(isinstance(name, str) for name in names):
        raise DataError(f"{WEIGHTS}: names {len(names)} classes; {PREDICTIONS} has {num}")
    if files.weights_sha256 != sha256:
        files.note(f"{PREDICTIONS}: made with other weights than {WEIGHTS}; 'fastcifar eval' makes it anew")
    return tuple(clean(name) for name in names)


def _described(files: RunFiles, scores: Scores, names: tuple[str, ...]) -> Scored:
    def confusion() -> Figure:
        from fastcifar import plotting

        return plotting.confusion(scores.confusion, plotting.class_labels(names), "")

    def reliability() -> Figure:
        from fastcifar import plotting

        return plotting.reliability(scores.bin_confidence, scores.bin_accuracy, scores.bin_count, scores.ece, "")

    def share(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    pairs = tuple((names[true], names[guess], count) for true, guess, count in scores.most_confused())
    said = "; ".join(f"{true} taken for {guess} {count:,} times" for true, guess, count in pairs[:3]) or "no mistakes"
    return Scored(
        num_images=int(scores.confusion.sum()),
        accuracy=scores.accuracy,
        loss=scores.loss,
        ece=scores.ece,
        classes=tuple(
            ClassRow(
                name=name,
                precision=share(scores.precision[i]),
                recall=share(scores.recall[i]),
                num_images=int(scores.confusion[i].sum()),
            )
            for i, name in enumerate(names)
        ),
        confused=pairs,
        confusion=drawing(files, confusion, f"Confusion matrix of {len(names)} classes: {said}"),
        reliability=drawing(
            files, reliability, f"Share of right answers by confidence; expected calibration error {scores.ece:.2%}"
        ),
    )
