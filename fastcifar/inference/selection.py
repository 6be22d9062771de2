"""Which images are looked at, and how sure the network was of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from fastcifar.augment.params import raw_bits
from fastcifar.config import ExplainConfig
from fastcifar.errors import UsageError
from fastcifar.training.checkpoint import Predictions

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What a network says of each image; arrays of (N,)."""

    index: Ints
    """Rows of the beton."""
    true: Ints
    predicted: Ints
    confidence: Floats
    """Probability of the predicted class, 0..1."""
    loss: Floats
    """Cross-entropy with the true class, nats; never negative."""

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        return self.true == self.predicted

    def at(self, places: Ints) -> Verdicts:
        """Those of some images."""
        return Verdicts(**{name: values[places] for name, values in vars(self).items()})


def verdicts(predictions: Predictions) -> Verdicts:
    """Softmax and loss of each image, in double precision."""
    logits, labels = torch.from_numpy(predictions.logits).double(), torch.from_numpy(predictions.label)
    return Verdicts(
        index=predictions.index,
        true=predictions.label,
        predicted=logits.argmax(dim=1).numpy(),
        confidence=logits.softmax(dim=1).amax(dim=1).numpy(),
        loss=F.cross_entropy(logits, labels, reduction="none").clamp(min=0).numpy() + 0.0,  # not -0.0
    )


def choose(found: Verdicts, config: ExplainConfig) -> Ints:
    """The places in `found` of the images to explain, (M,), in the order in which they are shown.

    Raises UsageError if the selection names an image that is not there.
    """
    if not isinstance(config.select, str):
        place_of = {row: place for place, row in enumerate(found.index.tolist())}
        for row in config.select:
            if row not in place_of:
                raise UsageError(f"select names image {row}; expected 0..{int(found.index.max())}")
        return np.array([place_of[row] for row in config.select], dtype=np.int64)
    places = np.flatnonzero(found.right == config.correct)
    keys = {
        "loss": -found.loss[places],
        "confidence": -found.confidence[places],
        "random": raw_bits(config.seed, 0, "explain", len(found.index))[places],
    }
    return places[np.argsort(keys[config.select], kind="stable")][: config.n]
