"""Classification metrics: accuracy, precision, recall, confusion matrix, calibration.

Computed here: torchmetrics would import matplotlib's pyplot, which fails under some values of MPLBACKEND.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.inference.predictions import Predictions

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NUM_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Of N images and C classes."""

    accuracy: float
    """Share of images that are correctly classified, 0..1."""
    loss: float
    """Mean cross-entropy in nats; never negative."""
    precision: Floats
    """(C,): the share of the images predicted as a class that belong to it; NaN where none is predicted as it."""
    recall: Floats
    """(C,): the share of the images of a class that are predicted as it; NaN where the class has no image."""
    confusion: Ints
    """(C, C): number of images by true class (row) and predicted class (column)."""
    ece: float
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017), 0..1."""
    bins: tuple[Floats, Floats, Ints]
    """Mean confidence, accuracy and number of the predictions in each bin, (15,) each; 0 where the bin is empty."""

    def most_confused(self, max_pairs: int = 10) -> list[tuple[int, int, int]]:
        """The most frequently confused pairs, (true, predicted, number of images), the most frequent first."""
        counts = self.confusion * (1 - np.eye(len(self.confusion), dtype=np.int64))
        order = np.argsort(-counts, axis=None, kind="stable")[:max_pairs]
        pairs = [(int(i // len(counts)), int(i % len(counts))) for i in order]
        return [(true, predicted, int(counts[true, predicted])) for true, predicted in pairs if counts[true, predicted]]

    def describe_confused(self, class_names: Sequence[str]) -> str:
        """The three most frequently confused pairs in words; empty if no image is misclassified."""
        pairs = ((class_names[true], class_names[guess], count) for true, guess, count in self.most_confused(3))
        return "; ".join(f"{true} predicted as {guess} {count:,} times" for true, guess, count in pairs)

    def per_class(self) -> list[dict[str, Any]]:
        """precision, recall (None where undefined) and num_images of each class."""
        return [
            {
                "precision": None if np.isnan(self.precision[i]) else float(self.precision[i]),
                "recall": None if np.isnan(self.recall[i]) else float(self.recall[i]),
                "num_images": int(self.confusion[i].sum()),
            }
            for i in range(len(self.confusion))
        ]

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """As plain values with class names, for JSON."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "ece": self.ece,
            "num_images": int(self.confusion.sum()),
            "classes": dict(zip(class_names, self.per_class(), strict=True)),
            "confusion": self.confusion.tolist(),
            "most_confused": [
                {"true": class_names[true], "predicted": class_names[predicted], "num_images": count}
                for true, predicted, count in self.most_confused()
            ],
        }


def compute_metrics(predictions: Predictions) -> Metrics:
    """The metrics of predictions with finite logits and known labels."""
    num_images, num_classes = predictions.logits.shape
    pairs = predictions.labels * num_classes + predictions.predicted
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    bins = np.minimum((predictions.confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    count = np.bincount(bins, minlength=NUM_BINS)

    def mean_by_bin(values: npt.NDArray[Any]) -> Floats:
        return np.bincount(bins, values, NUM_BINS) / np.maximum(count, 1)

    confidence, accuracy = mean_by_bin(predictions.confidence), mean_by_bin(predictions.is_correct)
    return Metrics(
        accuracy=predictions.accuracy,
        loss=predictions.loss,
        precision=_ratio(confusion.diagonal(), confusion.sum(axis=0)),
        recall=_ratio(confusion.diagonal(), confusion.sum(axis=1)),
        confusion=confusion,
        # torchmetrics' calibration error puts a confidence of exactly 1 into a bin of its own
        ece=float(np.abs(confidence - accuracy) @ count / num_images),
        bins=(confidence, accuracy, count),
    )


def wilson_interval(num_correct: int, num_images: int) -> tuple[float, float]:
    """The 95% confidence interval of an accuracy (Wilson, "Probable Inference, the Law of Succession, and Statistical
    Inference", 1927)."""
    z = NormalDist().inv_cdf(0.975)
    share, weight = num_correct / num_images, z**2 / num_images
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def _ratio(counts: Ints, totals: Ints) -> Floats:
    """NaN where the total is 0."""
    return np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)
