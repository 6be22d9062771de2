"""What a run says about its learning rate."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

from fastcifar.config import TrainConfig
from fastcifar.io.paths import command_line

log = logging.getLogger(__name__)
SMALLER = 5


def tell_default_rate(config: TrainConfig) -> None:
    """Say which rate a run has that was given none, and why."""
    log.info("learning rate %g, the default of %s with %s", config.peak_lr, config.model.name, config.optimizer.name)


def warn_of_guessing(config: TrainConfig, row: dict[str, Any], num_classes: int, *, was_found: bool = False) -> bool:
    """Warn if the training loss of an epoch, a row of results.csv, is above that of giving each class the same
    probability: the logarithm of their number, with any label smoothing too. Returns whether it is.

    was_found: the rate is that of a range test, which is not advised once more.
    """
    guessing = math.log(num_classes)
    if row["train_loss"] <= guessing:
        return False
    log.warning(
        "the training loss of epoch %d, %.4g, is above that of guessing, %.4g (the logarithm of %d classes): the "
        "network has not learned yet; if that stays so, try a smaller --lr, such as %.2g%s",
        row["epoch"],
        row["train_loss"],
        guessing,
        num_classes,
        config.peak_lr / SMALLER,
        "" if was_found else f", or find one: {range_test_line(config)}",
    )
    return True


def range_test_line(config: TrainConfig) -> str:
    """The command that runs the range test of these settings."""
    words: list[str | os.PathLike[str]] = ["fastcifar", "lr-find", "--data-dir", Path(config.data.data_dir)]
    settings = config.to_settings()
    for key in ("model", "norm", "optimizer", "batch_size"):
        words += [f"--{key.replace('_', '-')}", str(settings[key])]
    return command_line(*words)
