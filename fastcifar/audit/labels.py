"""Wrong labels, ranked by cleanlab (Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels",
2021) from the probabilities of networks that did not see the images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.audit.issues import Image, Issue
from fastcifar.errors import MissingExtraError, describe
from fastcifar.system.quiet import quiet_package

METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
METHOD = "self_confidence"
"""cleanlab's default: the probability of the label alone, which is also small for images of no class or of several.
The others are in the table of benchmarks/label_errors.py."""
Floats = npt.NDArray[np.float32]
TOLERANCE = 1e-6
"""Probabilities that differ less are equal: of a class whose images all have one, none is below the mean."""


def require_cleanlab() -> None:
    """Raise MissingExtraError if cleanlab cannot be imported; before the trainings, which take minutes."""
    _cleanlab("rank")


def label_issues(
    probabilities: Floats, labels: npt.NDArray[np.int64], class_names: Sequence[str], split: str
) -> list[Issue]:
    """The images whose label is doubtful, the most doubtful first; `suggested` is the most probable other class.

    probabilities: (N, C) float32, rows with sum 1, of the N images of a split, by networks that did not see them.
    labels: (N,) int64. Doubtful is a label that another class is more probable than, or that is less probable than on
    the average of its class, the threshold of confident learning. These are more than have a wrong label: see
    `estimate_num_errors`. Raises MissingExtraError.
    """
    rows = np.arange(len(labels))
    doubts, own, others = doubt_scores(probabilities, labels), probabilities[rows, labels], probabilities.copy()
    thresholds = _cleanlab("count").get_confident_thresholds(labels, probabilities.astype(np.float64))
    others[rows, labels] = -1
    suggested = others.argmax(axis=1)
    doubtful = np.flatnonzero((own < thresholds[labels] - TOLERANCE) | (probabilities.argmax(axis=1) != labels))
    return [
        Issue(
            kind="label",
            image=Image(split=split, index=index),
            label=class_names[labels[index]],
            suggested=class_names[suggested[index]],
            score=round(float(doubts[index]), 6),
        )
        for index in doubtful[np.argsort(-doubts[doubtful], kind="stable")].tolist()
    ]


def doubt_scores(probabilities: Floats, labels: npt.NDArray[np.int64], method: str = METHOD) -> npt.NDArray[np.float64]:
    """(N,) float64, 0..1: the larger, the more certain that the label is wrong; 1 - cleanlab's label quality score.

    method: of METHODS. Raises MissingExtraError.
    """
    with quiet_package("cleanlab", logging.ERROR):
        quality = _cleanlab("rank").get_label_quality_scores(labels, probabilities.astype(np.float64), method=method)
    return np.clip(1 - np.asarray(quality, np.float64), 0, 1)


def estimate_num_errors(probabilities: Floats, labels: npt.NDArray[np.int64]) -> int:
    """How many of the labels are wrong, as cleanlab estimates it from the same arrays as `label_issues`."""
    with quiet_package("cleanlab", logging.ERROR):
        return int(_cleanlab("count").num_label_issues(labels, probabilities.astype(np.float64)))


def _cleanlab(module: str) -> Any:
    """A module of cleanlab, which imports pandas and scikit-learn: seconds. Raises MissingExtraError."""
    import importlib

    try:
        with quiet_package("cleanlab", logging.ERROR):
            return importlib.import_module(f"cleanlab.{module}")
    except ImportError as error:
        raise MissingExtraError("the ranking of label errors", "audit", describe(error)) from error
