"""How far a run is, and who is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

UNKNOWN = ("val_loss", "val_accuracy")
"""Figures that an epoch has only if images are held out."""
MOST = 1e15


class Reporter(Protocol):
    """What shows progress while a run goes on."""

    def begin(self, what: str, total: int) -> None:
        """`total` images of `what` ('epoch 3/50', 'test') follow."""

    def advance(self, count: int) -> None:
        """`count` images more are done."""

    def step(self, step: int, loss: float, rest_s: float) -> None:
        """Step `step` (from 1) had this training loss, and the rest of the run takes about `rest_s` seconds; on a GPU
        not every step is reported."""


class SilentReporter:
    """Shows nothing."""

    def begin(self, what: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...

    def step(self, step: int, loss: float, rest_s: float) -> None: ...


@dataclass
class Progress:
    """How far a run is. Part of the checkpoint."""

    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Batches done of the epoch under way."""
    step: int = 0
    """Steps done in all."""
    loss_sum: float = 0.0
    """Sum of the losses of the images of the epoch under way."""
    correct: int = 0
    seen: int = 0
    logged_batch: int = 0
    """Batches of the epoch under way when --log-every last spoke, and the sum of the losses until then."""
    logged_sum: float = 0.0
    seconds: float = 0.0
    """Time spent in the epoch under way before the run was stopped."""
    best: dict[str, Any] | None = None
    """Epoch, val_loss and val_accuracy of the best epoch."""
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def restored(cls, facts: dict[str, Any]) -> Progress:
        """That of a checkpoint. Raises ValueError, TypeError or KeyError if it cannot be one."""
        from fastcifar.training.run_folder import COLUMNS

        found = cls(**facts)
        counts = (found.epoch, found.batch, found.step, found.correct, found.seen, found.logged_batch)
        if not all(type(number) is int and number >= 0 for number in counts):
            raise ValueError("its counts are not whole numbers from 0 on")
        if found.correct > found.seen or found.logged_batch > found.batch:
            raise ValueError("its counts do not fit together")
        if not all(map(_is_number, (found.loss_sum, found.logged_sum, found.seconds))):
            raise ValueError("its sums are not numbers")
        rows: list[tuple[dict[str, Any], tuple[str, ...]]] = [(row, COLUMNS) for row in found.history]
        rows += [] if found.best is None else [(found.best, ("epoch", "val_loss", "val_accuracy"))]
        if [row["epoch"] for row in found.history] != list(range(1, found.epoch + 1)):
            raise ValueError("its results are not a row for each epoch")
        for row, columns in rows:
            if row.keys() != set(columns):
                raise ValueError("its results have other columns")
            if not all(_is_number(value) or (value is None and key in UNKNOWN) for key, value in row.items()):
                raise ValueError("its results are not numbers")
        return found

    def begin_next_epoch(self, row: dict[str, Any]) -> None:
        """The epoch under way has ended with this row of results."""
        self.history.append(row)
        self.epoch += 1
        self.batch = self.seen = self.correct = self.logged_batch = 0
        self.loss_sum = self.logged_sum = self.seconds = 0.0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MOST  # a NaN is below nothing


def duration(seconds: float) -> str:
    """'2 h 05 min', '3 min 20 s' or '12 s'."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
