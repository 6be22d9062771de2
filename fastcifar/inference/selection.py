"""Which images of a set of predictions are shown."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastcifar.augment.params import raw_bits
from fastcifar.config import ExplainConfig
from fastcifar.errors import UsageError
from fastcifar.inference.predictions import Predictions


def select_images(predictions: Predictions, config: ExplainConfig) -> npt.NDArray[np.int64]:
    """Positions in `predictions` of the selected images, (M,), in the order in which they are shown.

    Raises UsageError if the selection names an image that is not among them.
    """
    if not isinstance(config.select, str):
        positions = {index: position for position, index in enumerate(predictions.indices.tolist())}
        for index in config.select:
            if index not in positions:
                raise UsageError(f"select names image {index}; expected 0..{int(predictions.indices.max())}")
        return np.array([positions[index] for index in config.select], dtype=np.int64)
    candidates = np.flatnonzero(predictions.is_correct == config.correct)
    keys = {
        "loss": -predictions.losses[candidates],
        "confidence": -predictions.confidence[candidates],
        "random": raw_bits(config.seed, 0, "explain", len(predictions))[candidates],
    }
    return candidates[np.argsort(keys[config.select], kind="stable")][: config.n]
