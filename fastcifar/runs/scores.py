"""The scores of one run or of several: mean, spread and interval of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastcifar.runs.statistics import Mean, mean_of
from fastcifar.runs.summary import RunSummary
from fastcifar.training.progress import duration


class Score(NamedTuple):
    """A number of metrics.json that is summarised."""

    key: str
    name: str
    is_share: bool = False
    """Shown in percent."""


TEST_ACCURACY = Score("test_accuracy", "test accuracy", is_share=True)
VAL_ACCURACY = Score("val_accuracy", "validation accuracy", is_share=True)
SCORES = (
    TEST_ACCURACY,
    Score("tta_accuracy", "with test-time augmentation", is_share=True),
    VAL_ACCURACY,
    Score("test_loss", "test loss"),
    Score("train_seconds", "training time"),
)


def value_of(run: RunSummary, score: Score) -> float | None:
    """The score of a run; None if it has none."""
    return run.best_val_accuracy if score.key == "val_accuracy" else run.score(score.key)


def scores_of(runs: Sequence[RunSummary]) -> dict[str, Mean]:
    """The mean of each score that all finished runs have, by its key."""
    means = {}
    for score in SCORES:
        values = [value_of(run, score) for run in runs if run.is_finished and not run.has_diverged]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            means[score.key] = mean_of(known)
    return means


def shown(score: Score, mean: Mean) -> str:
    """The mean, and its 95% interval if there are several runs: '93.12% ± 0.21'."""
    if score.key == "train_seconds":
        text = duration(mean.mean)
        if mean.half_width is None:
            return text
        return f"{text} ± {duration(mean.half_width) if mean.half_width >= 60 else f'{mean.half_width:.1f} s'}"
    factor, unit, digits = (100, "%", 2) if score.is_share else (1, "", 4)
    text = f"{factor * mean.mean:.{digits}f}{unit}"
    return text if mean.half_width is None else f"{text} ± {factor * mean.half_width:.{digits}f}"
