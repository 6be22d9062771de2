"""How good a network's answers are: accuracy, precision, recall, confusion, calibration.

Counted here: torchmetrics would import matplotlib's pyplot, which a notebook's MPLBACKEND can make impossible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NUM_BINS = 15


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of N images and C classes."""

    accuracy: float
    """Share of images whose largest logit is that of their class, 0..1."""
    loss: float
    """Mean cross-entropy, nats; never negative."""
    precision: Floats
    """(C,): of the images taken for a class, the share that is of it; NaN where none is taken for it."""
    recall: Floats
    """(C,): of the images of a class, the share that is taken for it; NaN where there is none."""
    confusion: Ints
    """(C, C): images of each true class (row) by predicted class (column)."""
    ece: float
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017), 0..1."""
    bin_confidence: Floats
    """(15,): mean confidence of the answers in each bin; 0 where there is none."""
    bin_accuracy: Floats
    """(15,): share of them that is right; 0 where there is none."""
    bin_count: Ints
    """(15,)."""

    def most_confused(self, most: int = 10) -> list[tuple[int, int, int]]:
        """The pairs (true, predicted, images) that are confused most often, the most frequent first."""
        counts = self.confusion * (1 - np.eye(len(self.confusion), dtype=np.int64))
        order = np.argsort(-counts, axis=None, kind="stable")[:most]
        pairs = [(int(i // len(counts)), int(i % len(counts))) for i in order]
        return [(true, guess, int(counts[true, guess])) for true, guess in pairs if counts[true, guess]]

    def facts(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """The same as plain values, with the names of the classes: for JSON."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "ece": self.ece,
            "num_images": int(self.confusion.sum()),
            "classes": {
                name: {
                    "precision": _plain(self.precision[i]),
                    "recall": _plain(self.recall[i]),
                    "num_images": int(self.confusion[i].sum()),
                }
                for i, name in enumerate(class_names)
            },
            "confusion": self.confusion.tolist(),
            "most_confused": [
                {"true": class_names[true], "predicted": class_names[guess], "num_images": count}
                for true, guess, count in self.most_confused()
            ],
        }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _shares(counts: Ints, of: Ints) -> Floats:
    """NaN where there is nothing to share."""
    return np.where(of > 0, counts / np.maximum(of, 1), np.nan)


def score(logits: npt.NDArray[np.float32], labels: Ints, num_classes: int) -> Scores:
    """Scores of logits, (N, C) float32 and finite, against labels, (N,) int64."""
    answers, true = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    probabilities = answers.softmax(dim=1)
    confidence, guesses = probabilities.max(dim=1)
    pairs = np.bincount(labels * num_classes + guesses.numpy(), minlength=num_classes**2)
    confusion = pairs.reshape(num_classes, num_classes)
    bins = np.minimum((confidence.numpy() * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    count = np.bincount(bins, minlength=NUM_BINS)
    right = (guesses == true).double().numpy()

    def mean(values: Floats) -> Floats:
        return np.bincount(bins, values, NUM_BINS) / np.maximum(count, 1)

    sure, correct = mean(confidence.numpy()), mean(right)
    return Scores(
        accuracy=int(np.trace(confusion)) / len(labels),
        loss=max(0.0, F.cross_entropy(answers, true).item()),
        precision=_shares(confusion.diagonal(), confusion.sum(axis=0)),
        recall=_shares(confusion.diagonal(), confusion.sum(axis=1)),
        confusion=confusion,
        # not torchmetrics' calibration error, which puts a confidence of exactly 1 into a bin of its own
        ece=float(np.abs(sure - correct) @ count / len(labels)),
        bin_confidence=sure,
        bin_accuracy=correct,
        bin_count=count,
    )
