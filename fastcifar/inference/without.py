"""The score of a run without some test images, e.g. those that are also among the training images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcifar.data.beton import Beton
from fastcifar.errors import DataError
from fastcifar.inference.metrics import Metrics, compute_metrics
from fastcifar.inference.predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Images of a test set that a score leaves out."""

    path: str
    """Of the file that lists them, for messages."""
    kinds: Mapping[int, str]
    """By index in the beton, why: a kind of issue."""
    data_sha256: str
    """The first digits of the SHA-256 of the beton; empty if no image is listed."""
    file_sha256: str
    steps: Mapping[str, Sequence[str]]
    """By their names, the kinds that are left out one step after another."""


@dataclass(frozen=True, kw_only=True)
class ReducedScore:
    """The metrics without the images of some kinds."""

    name: str
    """What is left out, in words."""
    metrics: Metrics
    counts: Mapping[str, int]
    """Number of images that are left out, by kind."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**self.metrics.scores(), "num_images": len(self.metrics.predictions), "left_out": dict(self.counts)}


def reduced_scores(predictions: Predictions, beton: Beton, left_out: LeftOut) -> tuple[ReducedScore, ...]:
    """The scores of the predictions on a beton, a step for each of `left_out.steps`, each without the images of the
    steps before, too.

    Raises DataError if the images are those of another beton, or none remains.
    """
    _require_data(beton, left_out)
    scores = []
    kinds: set[str] = set()
    for name, step in left_out.steps.items():
        kinds |= set(step)
        indices = [index for index, kind in left_out.kinds.items() if kind in kinds]
        is_left_out = np.isin(predictions.indices, indices)
        if is_left_out.all():
            raise DataError(f"{left_out.path}: leaves out all {len(predictions):,} images; expected some to remain")
        counts = Counter(left_out.kinds[index] for index in predictions.indices[is_left_out].tolist())
        metrics = compute_metrics(predictions.select(np.flatnonzero(~is_left_out)))
        scores.append(ReducedScore(name=name, metrics=metrics, counts=dict(sorted(counts.items()))))
    return tuple(scores)


def _require_data(beton: Beton, left_out: LeftOut) -> None:
    if left_out.kinds and not beton.sha256.startswith(left_out.data_sha256):
        raise DataError(
            f"{left_out.path}: made for test images of SHA-256 {left_out.data_sha256}…; {beton.path} has "
            f"{beton.sha256[: len(left_out.data_sha256)]}…; expected the issues.csv of an audit of these data"
        )
    if left_out.kinds and max(left_out.kinds) >= len(beton):
        raise DataError(
            f"{left_out.path}: names test image {max(left_out.kinds)}; expected 0..{len(beton) - 1}, as in {beton.path}"
        )
