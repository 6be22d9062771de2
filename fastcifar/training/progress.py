"""How far a run is, and who displays it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from fastcifar.training.run_folder import COLUMNS

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
        restored = Progress(**state)
        counts = (restored.epoch, restored.batch, restored.step, restored.correct, restored.seen, restored.logged_batch)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("its counts are not integers from 0 on")
        if restored.correct > restored.seen or restored.logged_batch > restored.batch:
            raise ValueError("its counts are inconsistent")
        if not all(map(_is_number, (restored.loss_sum, restored.logged_sum, restored.seconds))):
            raise ValueError("its sums are not numbers")
        if [row["epoch"] for row in restored.history] != list(range(1, restored.epoch + 1)):
            raise ValueError("its results are not one row per epoch")
        for row in restored.history:
            _require_row(row, COLUMNS)
        if restored.best is not None:
            _require_row(restored.best, BEST_COLUMNS)
        self.__dict__.update(restored.__dict__)


def _require_row(row: dict[str, Any], columns: tuple[str, ...]) -> None:
    if row.keys() != set(columns):
        raise ValueError("its results have other columns")
    if not all(_is_number(value) or (value is None and key in OPTIONAL_COLUMNS) for key, value in row.items()):
        raise ValueError("its results are not numbers")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_NUMBER  # False for NaN


def duration(seconds: float) -> str:
    """'2 h 05 min', '3 min 20 s' or '12 s'."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
