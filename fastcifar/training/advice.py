"""Advice in the log of a run about its learning rate."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

from fastcifar.config import TrainConfig
from fastcifar.io.paths import command_line

log = logging.getLogger(__name__)


def warn_if_not_learning(config: TrainConfig, row: dict[str, Any], num_classes: int, *, tested: bool = False) -> bool:
    """Warn, and return True, if the training loss of an epoch (a row of results.csv) is above that of uniform
    probabilities, log(num_classes), which label smoothing does not change.

    tested: the rate is that of a range test, so another one is not suggested.
    """
    uniform = math.log(num_classes)
    if row["train_loss"] <= uniform:
        return False
    log.warning(
        "the training loss of epoch %d, %.4g, is above that of guessing, %.4g (the logarithm of %d classes): the "
        "network has not learned yet; if that stays so, try a smaller --lr, e.g. %.2g%s",
        row["epoch"],
        row["train_loss"],
        uniform,
        num_classes,
        config.peak_lr / 5,
        "" if tested else f", or find one: {lr_find_command(config)}",
    )
    return True


def lr_find_command(config: TrainConfig) -> str:
    """The command that runs the range test with these settings."""
    words: list[str | os.PathLike[str]] = ["fastcifar", "lr-find", "--data-dir", Path(config.data.data_dir)]
    settings = config.to_settings()
    for name in ("model", "norm", "optimizer", "batch_size"):
        words += [f"--{name.replace('_', '-')}", str(settings[name])]
    return command_line(*words)
