"""What a run is given, how far it is, how long the rest takes, and who displays it."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch

from fastcifar.config import TrainConfig
from fastcifar.loggers import Loggers
from fastcifar.training.data import Loaders
from fastcifar.training.distributed import Distributed
from fastcifar.training.run_folder import COLUMNS, RunFolder

log = logging.getLogger(__name__)
MEMORY_S = 15.0  # of the exponential average of the pace
BEST_COLUMNS = ("epoch", "val_loss", "val_accuracy")
OPTIONAL_COLUMNS = ("val_loss", "val_accuracy")
"""None without validation."""
MAX_NUMBER = 1e15


class Reporter(Protocol):
    """Displays progress."""

    def begin(self, name: str, total: int) -> None:
        """`total` images of `name` ('epoch 3/50', 'test') follow."""

    def advance(self, count: int) -> None:
        """`count` more images are done."""

    def step(self, step: int, loss: float, remaining_s: float) -> None:
        """Step `step` (from 1) had this training loss; the rest of the run takes about `remaining_s` seconds. On a GPU
        only some steps are reported."""


class SilentReporter:
    """Displays nothing."""

    def begin(self, name: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...

    def step(self, step: int, loss: float, remaining_s: float) -> None: ...


class PrefixedReporter:
    """Names the run, one of several, before each part of it."""

    def __init__(self, reporter: Reporter, prefix: str) -> None:
        self._reporter, self._prefix = reporter, prefix
        self.advance, self.step = reporter.advance, reporter.step

    def begin(self, name: str, total: int) -> None:
        self._reporter.begin(f"{self._prefix}, {name}", total)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What the trainer, its checkpointer and its metric logger share."""

    config: TrainConfig
    run: RunFolder
    loaders: Loaders
    device: torch.device
    distributed: Distributed
    reporter: Reporter
    loggers: Loggers = field(default_factory=Loggers)
    is_resumed: bool = False
    is_fold: bool = False
    """Whether an audit trains it; advice about settings is for the runs of users."""

    @cached_property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return num_steps_of(self.config, len(self.loaders.train))


def num_steps_of(config: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of the whole run."""
    num_steps = steps_per_epoch * config.epochs
    return num_steps if config.max_steps is None else min(num_steps, config.max_steps)


def stages_of(config: TrainConfig, num_steps: int) -> list[tuple[int | None, int, int]]:
    """The stages of `progressive`: side of the images (None: their own), first step, and the step after the last."""
    ends = [(side, math.ceil(until * num_steps)) for side, until in config.progressive]
    stages, begin = [], 0
    for side, end in (*ends, (None, num_steps)):
        if end > begin:
            stages.append((side, begin, end))
            begin = end
    return stages


@dataclass
class Progress:
    """How far a run is, and the sums of its current epoch. Part of the checkpoint."""

    epoch: int = 0
    """Completed epochs."""
    batch: int = 0
    """Completed batches of the current epoch."""
    step: int = 0
    """Completed steps."""
    loss_sum: float = 0.0
    """Sum of the losses of the images of the current epoch."""
    correct: int = 0
    seen: int = 0
    """Images of the current epoch that were correctly classified; that were trained on."""
    logged_batch: int = 0
    logged_sum: float = 0.0
    """`batch` and `loss_sum` when --log-every logged last."""
    seconds: float = 0.0
    """Training time of the current epoch before the last save."""
    best: dict[str, Any] | None = None
    """Epoch, val_loss and val_accuracy of the best epoch."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """The rows of results.csv."""

    def begin_next_epoch(self, row: dict[str, Any]) -> None:
        """End the current epoch with this row of results."""
        self.history.append(row)
        self.epoch += 1
        self.batch = self.seen = self.correct = self.logged_batch = 0
        self.loss_sum = self.logged_sum = self.seconds = 0.0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint. Raises ValueError, TypeError or KeyError if the values are not possible."""
        new = Progress(**state)
        counts = (new.epoch, new.batch, new.step, new.correct, new.seen, new.logged_batch)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("its counts are not integers from 0 on")
        if new.correct > new.seen or new.logged_batch > new.batch:
            raise ValueError("its counts are inconsistent")
        if not all(map(_is_number, (new.loss_sum, new.logged_sum, new.seconds))):
            raise ValueError("its sums are not numbers")
        epochs = [row["epoch"] for row in new.history]
        if len(epochs) != new.epoch or epochs != list(range(1, len(epochs) + 1)):
            raise ValueError("its results are not one row per epoch")
        for row in new.history:
            _require_row(row, COLUMNS)
        if new.best is not None:
            _require_row(new.best, BEST_COLUMNS)
        self.__dict__.update(new.__dict__)


def _require_row(row: dict[str, Any], columns: tuple[str, ...]) -> None:
    numbers = [value for key, value in row.items() if value is not None or key not in OPTIONAL_COLUMNS]
    if row.keys() != set(columns) or not all(map(_is_number, numbers)):
        raise ValueError("its results have other columns, or are not numbers")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_NUMBER  # False for NaN


def duration(seconds: float) -> str:
    """'2 h 05 min', '3 min 20 s' or '12 s'."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


class TimeLeft:
    """The time left, from the pace of the last half minute and the duration of the last validation.

    Work is counted in training steps on images of full size.
    """

    def __init__(
        self, config: TrainConfig, num_steps: int, steps_per_epoch: int, image_shape: tuple[int, int, int]
    ) -> None:
        height, width, _ = image_shape
        # (work of a step, until which step)
        self._stages = [
            (1.0 if side is None else side**2 / (height * width), end) for side, _, end in stages_of(config, num_steps)
        ]
        self._num_steps, self._num_epochs = num_steps, -(-num_steps // steps_per_epoch)
        self._seconds = self._work = 0.0  # of the last steps
        self.validation_s = 0.0
        """Duration of the last validation."""
        self.start()

    def start(self) -> None:
        """The next step begins now."""
        self._begin = time.monotonic()

    def step(self, step: int) -> None:
        """Step `step` (from 0) has ended; the next begins now."""
        seconds, work = time.monotonic() - self._begin, self._work_of(step, step + 1)
        self.start()
        decay = math.exp(-seconds / MEMORY_S)
        self._seconds, self._work = decay * self._seconds + seconds, decay * self._work + work

    def seconds(self, progress: Progress) -> float:
        """Seconds that the rest of the run takes at the current pace; 0 before the first step."""
        if not self._work:
            return 0.0
        training_s = self._work_of(progress.step, self._num_steps) * self._seconds / self._work
        return training_s + self.validation_s * (self._num_epochs - progress.epoch)

    def log(self, progress: Progress) -> None:
        """Log the time left."""
        if progress.step < self._num_steps:
            log.info("about %s left", duration(self.seconds(progress)))

    def _work_of(self, begin: int, end: int) -> float:
        """The work of the steps from `begin` to before `end`."""
        work = 0.0
        for per_step, until in self._stages:
            last = max(begin, min(end, until))
            work += per_step * (last - begin)
            begin = last
        return work
