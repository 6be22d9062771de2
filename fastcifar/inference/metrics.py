"""Classification metrics: accuracy and its interval, precision, recall, F1, confusion matrix, calibration.

Computed here: torchmetrics would import matplotlib's pyplot, which fails under some values of MPLBACKEND.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.inference.predictions import Predictions

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NUM_BINS = 15
TOP = 5
MAX_MATRIX = 1_000
"""Classes of a confusion matrix that is written or drawn; its cells grow with their square."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The scores of `predictions`, on N images of C classes.

    Examples:
        >>> scores = Run("fast").scores("test")
        >>> low, high = scores.interval
        >>> low <= scores.accuracy <= high
        True
        >>> scores.recall.shape, int(scores.confusion.sum())
        ((10,), 40)
    """

    predictions: Predictions
    """The predictions that are scored; each has a label."""
    accuracy: float
    """Share of images that are correctly classified, 0..1."""
    interval: tuple[float, float]
    """The 95% confidence interval of the accuracy (Wilson 1927), 0..1."""
    top5_accuracy: float | None
    """Share of images whose class is one of the five of largest logit, 0..1; None where there are at most five."""
    balanced_accuracy: float
    """Mean recall of the classes that have images, 0..1."""
    macro_f1: float
    """Mean F1 of the classes that have images or are predicted, 0..1."""
    loss: float
    """Mean cross-entropy in nats; never negative."""
    precision: Floats
    """(C,) float64: the share of the images predicted as a class that belong to it; NaN where none is predicted so."""
    recall: Floats
    """(C,) float64: the share of the images of a class that are predicted as it; NaN where the class has no image."""
    f1: Floats
    """(C,) float64: the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN); NaN where the class has no
    image and none is predicted as it."""
    num_images: Ints
    """(C,) int64: number of images of each class."""
    ece: float
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017), 0..1."""
    bins: tuple[Floats, Floats, Ints]
    """Mean confidence, accuracy and number of the predictions in each bin, (15,) each; 0 where the bin is empty."""

    @cached_property
    def confusion(self) -> Ints:
        """(C, C) int64: number of images by true class (row) and predicted class (column)."""
        num_classes = self.predictions.logits.shape[1]
        pairs = self.predictions.labels * num_classes + self.predictions.predicted
        return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)

    def most_confused(self, max_pairs: int = 10) -> list[tuple[int, int, int]]:
        """The most frequently confused pairs, (true, predicted, number of images), the most frequent first."""
        is_wrong, num_classes = ~self.predictions.is_correct, self.predictions.logits.shape[1]
        codes = self.predictions.labels[is_wrong] * num_classes + self.predictions.predicted[is_wrong]
        pairs, counts = np.unique(codes, return_counts=True)  # in ascending order
        order = np.argsort(-counts, kind="stable")[:max_pairs].tolist()
        return [(*divmod(int(pairs[i]), num_classes), int(counts[i])) for i in order]

    def describe_confused(self, class_names: Sequence[str]) -> str:
        """The three most frequently confused pairs in words; empty if no image is misclassified."""
        pairs = ((class_names[true], class_names[guess], count) for true, guess, count in self.most_confused(3))
        return "; ".join(f"{true} predicted as {guess} {count:,} times" for true, guess, count in pairs)

    def per_class(self) -> list[dict[str, Any]]:
        """precision, recall, f1 (None where undefined) and num_images of each class."""
        columns = self.precision, self.recall, self.f1, self.num_images
        return [
            {
                "precision": None if math.isnan(precision) else precision,
                "recall": None if math.isnan(recall) else recall,
                "f1": None if math.isnan(f1) else f1,
                "num_images": num_images,
            }
            for precision, recall, f1, num_images in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def scores(self) -> dict[str, Any]:
        """The numbers about all images, as plain values; top5_accuracy only where there are more than five classes."""
        top5 = {} if self.top5_accuracy is None else {"top5_accuracy": self.top5_accuracy}
        return {
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.interval),
            **top5,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "loss": self.loss,
            "ece": self.ece,
        }

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """As plain values with class names, for JSON; confusion only for up to MAX_MATRIX classes."""
        matrix = {"confusion": self.confusion.tolist()} if len(class_names) <= MAX_MATRIX else {}
        return {
            **self.scores(),
            "num_images": len(self.predictions),
            "classes": dict(zip(class_names, self.per_class(), strict=True)),
            **matrix,
            "most_confused": [
                {"true": class_names[true], "predicted": class_names[predicted], "num_images": count}
                for true, predicted, count in self.most_confused()
            ],
        }


def compute_metrics(predictions: Predictions) -> Metrics:
    """The metrics of predictions with finite logits and known labels."""
    labels, predicted, num_classes = predictions.labels, predictions.predicted, predictions.logits.shape[1]
    num_labelled, num_predicted, num_correct = (
        np.bincount(classes, minlength=num_classes) for classes in (labels, predicted, labels[predictions.is_correct])
    )
    recall, f1 = _ratio(num_correct, num_labelled), _ratio(2 * num_correct, num_labelled + num_predicted)
    bins = np.minimum((predictions.confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    count = np.bincount(bins, minlength=NUM_BINS)

    def mean_by_bin(values: npt.NDArray[Any]) -> Floats:
        return np.bincount(bins, values, NUM_BINS) / np.maximum(count, 1)

    confidence, accuracy = mean_by_bin(predictions.confidence), mean_by_bin(predictions.is_correct)
    return Metrics(
        predictions=predictions,
        accuracy=predictions.accuracy,
        interval=wilson_interval(int(num_correct.sum()), len(predictions)),
        top5_accuracy=float((_rank_of_label(predictions) < TOP).mean()) if num_classes > TOP else None,
        balanced_accuracy=float(np.nanmean(recall)),
        macro_f1=float(np.nanmean(f1)),
        loss=predictions.loss,
        precision=_ratio(num_correct, num_predicted),
        recall=recall,
        f1=f1,
        num_images=num_labelled,
        # torchmetrics' calibration error puts a confidence of exactly 1 into a bin of its own
        ece=float(np.abs(confidence - accuracy) @ count / len(predictions)),
        bins=(confidence, accuracy, count),
    )


def _rank_of_label(predictions: Predictions) -> Ints:
    """(N,): the number of classes before the true one by logit; of equal logits the first class comes first, as in
    `Predictions.predicted`."""
    logits, labels = predictions.logits, predictions.labels[:, None]
    own = np.take_along_axis(logits, labels, axis=1)
    is_before = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels))
    return is_before.sum(axis=1)


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
