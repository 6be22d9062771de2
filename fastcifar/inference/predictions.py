"""The predictions of a network on a set of images: one type, wherever they are made, stored, scored or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from fastcifar.augment.params import raw_bits
from fastcifar.config import ExplainConfig
from fastcifar.errors import UsageError
from fastcifar.io.atomic import write_arrays
from fastcifar.io.reading import MAX_ARRAYS, load_arrays, read_bytes

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
FIELDS = ("indices", "labels", "logits", "weights_sha256", "data_sha256")
UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of N images and C classes, and the weights and the data they belong to.

    What derives from the logits is computed in float64.

    Examples:
        >>> predictions = Run("fast").predictions("test")
        >>> predictions.logits.shape, predictions.predicted.shape, predictions.losses.dtype
        ((40, 10), (40,), dtype('float64'))
        >>> wrong = predictions.select(np.flatnonzero(~predictions.is_correct))
        >>> wrong.accuracy
        0.0
    """

    indices: Ints
    """(N,) int64: indices of the images in their beton; -1 where an image comes from elsewhere."""
    labels: Ints
    """(N,) int64; -1 where the true class is unknown."""
    logits: npt.NDArray[np.float32]
    """(N, C) float32."""
    weights_sha256: str = ""
    """SHA-256 of the file of the weights; empty if unknown."""
    data_sha256: str = ""
    """SHA-256 of the beton; empty if unknown, or if images come from elsewhere."""

    def __len__(self) -> int:
        return len(self.logits)

    @cached_property
    def predicted(self) -> Ints:
        """(N,) int64: the class of the largest logit."""
        return self._logits.argmax(dim=1).numpy()

    @cached_property
    def confidence(self) -> Floats:
        """(N,) float64: the probability of the predicted class, 0..1."""
        return self._logits.softmax(dim=1).amax(dim=1).numpy()

    @cached_property
    def losses(self) -> Floats:
        """(N,) float64: cross-entropy in nats, never negative; NaN where the label is unknown."""
        labels = torch.from_numpy(self.labels)
        losses = F.cross_entropy(self._logits, labels, ignore_index=UNKNOWN, reduction="none")
        return np.where(self.labels == UNKNOWN, np.nan, losses.clamp(min=0).numpy() + 0.0)  # not -0.0

    @cached_property
    def is_correct(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: whether the predicted class is the label."""
        return self.predicted == self.labels

    @cached_property
    def accuracy(self) -> float:
        """Share of the images with a label that are correctly classified, 0..1; NaN if there is none."""
        num_labelled = int((self.labels != UNKNOWN).sum())
        return int(self.is_correct.sum()) / num_labelled if num_labelled else float("nan")

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy of the images with a label, in nats; never negative."""
        labels = torch.from_numpy(self.labels)
        return F.cross_entropy(self._logits, labels, ignore_index=UNKNOWN).clamp(min=0).item() + 0.0

    @property
    def _logits(self) -> torch.Tensor:
        return torch.from_numpy(self.logits).double()

    def with_temperature(self, temperature: float) -> Predictions:
        """Those whose logits are divided by `temperature`: see `fastcifar.inference.calibration`."""
        largest = np.finfo(np.float32).max
        scaled = np.clip(self.logits.astype(np.float64) / temperature, -largest, largest)
        return replace(self, logits=scaled.astype(np.float32))

    def select(self, positions: Ints) -> Predictions:
        """Those at `positions`, (M,) int64 in 0..N-1, in that order."""
        return replace(
            self,
            indices=self.indices[positions],
            labels=self.labels[positions],
            logits=self.logits[positions],
        )

    def to_rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Index, true, predicted, confidence and loss of each image, as plain values; '' where the class is unknown."""
        columns = self.indices, self.labels, self.predicted, self.confidence, self.losses
        return [
            {
                "index": index,
                "true": class_names[label] if label != UNKNOWN else "",
                "predicted": class_names[predicted],
                "confidence": round(confidence, 6),
                "loss": round(loss, 6) if label != UNKNOWN else "",
            }
            for index, label, predicted, confidence, loss in zip(*(c.tolist() for c in columns), strict=True)
        ]

    def save(self, path: Path) -> None:
        """Write predictions.npz."""
        write_arrays(path, **{name: getattr(self, name) for name in FIELDS})

    @staticmethod
    def load(path: Path) -> Predictions:
        """Read predictions.npz. Raises OSError if it cannot be opened; ValueError if it is damaged, if a logit is not
        finite, or a label not a class."""
        arrays = load_arrays(read_bytes(path, MAX_ARRAYS), FIELDS)
        indices, labels, logits = (arrays[name] for name in FIELDS[:3])
        if logits.ndim != 2 or not logits.size or not indices.shape == labels.shape == (len(logits),):
            raise ValueError(f"indices {indices.shape}, labels {labels.shape}, logits {logits.shape} do not match")
        if indices.dtype != np.int64 or labels.dtype != np.int64 or logits.dtype != np.float32:
            raise ValueError(
                f"it holds {indices.dtype}, {labels.dtype}, {logits.dtype}; expected int64, int64, float32"
            )
        if not np.isfinite(logits).all():
            raise ValueError("its logits are not finite")
        num_classes = logits.shape[1]
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"its labels are {labels.min()}..{labels.max()}; expected 0..{num_classes - 1}")
        return Predictions(indices, labels, logits, *(str(arrays[name]) for name in FIELDS[3:]))


def select_images(predictions: Predictions, config: ExplainConfig) -> Predictions:
    """Those that are shown, in that order. Raises UsageError if the selection names an image that is not among them."""
    if not isinstance(config.select, str):
        positions = {index: position for position, index in enumerate(predictions.indices.tolist())}
        for index in config.select:
            if index not in positions:
                raise UsageError(f"select names image {index}; expected 0..{int(predictions.indices.max())}")
        return predictions.select(np.array([positions[index] for index in config.select], dtype=np.int64))
    candidates = np.flatnonzero(predictions.is_correct == config.correct)
    keys = {
        "loss": -predictions.losses[candidates],
        "confidence": -predictions.confidence[candidates],
        "random": raw_bits(config.seed, 0, "explain", len(predictions))[candidates],
    }
    return predictions.select(candidates[np.argsort(keys[config.select], kind="stable")][: config.n])
