"""The scores of a run on corrupted images by corruption and severity: what `corruptions` measures and the report shows.

A module of its own, without the converters that read such images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.inference.calibration import Calibration
from fastcifar.inference.evaluation import describe_calibration
from fastcifar.inference.predictions import Floats

NUM_SEVERITIES = 5
MAX_CORRUPTIONS = 100
EXTRA = frozenset({"gaussian_blur", "saturate", "spatter", "speckle_noise"})
"""Corruptions of CIFAR-10-C that are not part of its benchmark, but meant for validation."""
COLUMNS = ("corruption", "severity", "num_images", "accuracy", "loss", "ece", "calibrated_loss", "calibrated_ece")


@dataclass(frozen=True, kw_only=True)
class CorruptionEvaluation:
    """The result of `evaluate_corruptions`. Each array is (corruptions, 5): by severity."""

    corruptions: tuple[str, ...]
    num_images: int
    """Of each severity."""
    accuracy: Floats
    """0..1."""
    loss: Floats
    """Mean cross-entropy in nats."""
    ece: Floats
    """Expected calibration error, 0..1."""
    calibrated_loss: Floats | None
    calibrated_ece: Floats | None
    calibration: Calibration | None
    not_calibrated: str
    """Why there is no calibration; empty if there is one."""
    files: tuple[Path, ...] = ()

    @property
    def mean_accuracy(self) -> float:
        """Over the severities and corruptions that count, see `is_counted`."""
        return self.mean(self.accuracy)

    @property
    def mean_corruption_error(self) -> float:
        """1 - mean_accuracy: not divided by the errors of AlexNet, as ImageNet-C's mCE is."""
        return 1 - self.mean_accuracy

    def mean(self, values: Floats) -> float:
        """Of an array like `accuracy`, over the severities and corruptions that count."""
        return float(values[is_counted(self.corruptions)].mean())

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        by_corruption = {
            name: {"accuracy": row, "mean_accuracy": float(np.mean(row)), "counted": bool(counted)}
            for name, row, counted in zip(
                self.corruptions, self.accuracy.tolist(), is_counted(self.corruptions), strict=True
            )
        }
        calibrated = {} if self.calibrated_ece is None else {"mean_calibrated_ece": self.mean(self.calibrated_ece)}
        return {
            "num_images": self.num_images,
            "mean_accuracy": self.mean_accuracy,
            "mean_corruption_error": self.mean_corruption_error,
            "mean_ece": self.mean(self.ece),
            **calibrated,
            **describe_calibration(self.calibration, self.not_calibrated),
            "corruptions": by_corruption,
        }

    def to_rows(self) -> list[tuple[Any, ...]]:
        """The rows of corruptions.csv, with COLUMNS."""
        columns = [self.accuracy, self.loss, self.ece]
        nothing = np.full(self.accuracy.shape, None)
        columns += [nothing if each is None else each for each in (self.calibrated_loss, self.calibrated_ece)]
        return [
            (name, severity + 1, self.num_images, *(column[i, severity] for column in columns))
            for i, name in enumerate(self.corruptions)
            for severity in range(NUM_SEVERITIES)
        ]


def is_counted(corruptions: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(corruptions,) bool: which are part of the means: all but EXTRA, unless there are no others."""
    counted = np.array([name not in EXTRA for name in corruptions])
    return counted if counted.any() else ~counted
