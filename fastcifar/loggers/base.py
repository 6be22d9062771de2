"""`RunLogger`, what each dashboard implements, and `Loggers`, which keeps their failures from the training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastcifar.errors import DivergedError, FastcifarError, describe

log = logging.getLogger(__name__)
SCORES = ("test_accuracy", "test_loss", "tta_accuracy", "tta_loss", "train_seconds")
"""The numbers of metrics.json that are logged at the end, next to the best validation accuracy."""
Values = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The run that is logged."""

    path: Path
    """Its folder."""
    group: str | None
    """The name of its group, if it has one."""
    settings: Mapping[str, Any]
    """By name, as in config.yaml."""
    step: int
    """Completed steps: what an existing log has of later ones is replaced."""
    history: Sequence[Values]
    """The rows of results.csv, without empty cells, of the completed epochs."""
    is_resumed: bool

    @property
    def name(self) -> str:
        """Of its folder; with that of its group: 'group/seed-0'."""
        name = self.path.resolve().name
        return name if self.group is None else f"{self.group}/{name}"

    def make_subfolder(self, name: str) -> Path:
        """Create the folder of a dashboard, in that of the run, if needed. Raises FastcifarError if it is a link."""
        folder = self.path / name
        if folder.is_symlink():
            raise FastcifarError(f"{folder}: a link; expected a folder of the run")
        folder.mkdir(exist_ok=True)
        return folder


class RunLogger(Protocol):
    """Writes one run to a dashboard. Any method may raise any exception."""

    def begin(self, run: RunInfo) -> None:
        """Open the log of a run, or continue it. The settings are its hyperparameters."""

    def steps(self, rows: Sequence[tuple[int, Values]]) -> None:
        """Steps, from 1, with their loss, lr and images_per_s."""

    def epoch(self, row: Values) -> None:
        """A row of results.csv, without empty cells."""

    def finish(self, epoch: int, scores: Values) -> None:
        """The final scores, after `epoch` epochs."""

    def image(self, name: str, png: bytes) -> None:
        """A picture of the finished run."""

    def close(self) -> None:
        """Write what is buffered; end the log."""


class Loggers:
    """The open logs of one run. One that fails is closed, with a warning, and the training goes on.

    Steps are held back until the run is saved (`flush`): a run that is killed and resumed logs each step once.
    """

    def __init__(
        self, loggers: Mapping[str, RunLogger] | None = None, *, group: str | None = None, strict: bool = False
    ) -> None:
        """group: the name of the group of the run. strict: raise FastcifarError where one fails."""
        self._loggers = dict(loggers or {})
        self._group, self._strict = group, strict
        self._pending: list[tuple[int, Values]] = []

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *error: object) -> None:
        if error_type is not None and issubclass(error_type, DivergedError):
            self.flush()  # how it diverged
        self.close()

    @property
    def is_active(self) -> bool:
        """Whether anything is logged."""
        return bool(self._loggers)

    def begin(
        self, path: Path, settings: Mapping[str, Any], *, step: int, history: Sequence[Values], is_resumed: bool
    ) -> None:
        """Open the logs of the run at `path`; see `RunInfo`."""
        rows = [_numbers(row) for row in history]
        run = RunInfo(path=path, group=self._group, settings=settings, step=step, history=rows, is_resumed=is_resumed)
        self._each(lambda logger: logger.begin(run))

    def step(self, step: int, **values: float) -> None:
        """Log a step, from 1, at the next `flush`."""
        if self._loggers:
            self._pending.append((step, values))

    def flush(self) -> None:
        """Write the steps since the last call."""
        rows, self._pending = self._pending, []
        if rows:
            self._each(lambda logger: logger.steps(rows))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Log a row of results.csv, after the steps before it."""
        self.flush()
        self._each(lambda logger: logger.epoch(_numbers(row)))

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Log the final scores, those of metrics.json."""
        self.flush()
        scores = _numbers({key: metrics.get(key) for key in SCORES})
        best, epochs = metrics.get("best"), metrics.get("epochs")
        if isinstance(best, Mapping):
            scores |= _numbers({"best_val_accuracy": best.get("val_accuracy")})
        epoch = epochs if isinstance(epochs, int) else 0
        self._each(lambda logger: logger.finish(epoch, scores))

    def image(self, name: str, png: bytes) -> None:
        """Log a picture of the finished run, PNG."""
        self._each(lambda logger: logger.image(name, png))

    def close(self) -> None:
        """End the logs."""
        self._each(lambda logger: logger.close())
        self._loggers.clear()

    def _each(self, call: Callable[[RunLogger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except (Exception, SystemExit) as error:
                del self._loggers[name]
                with suppress(Exception, SystemExit):
                    logger.close()
                reason = f"the log of {name} failed: {describe(error, 300)}"
                if self._strict:
                    raise FastcifarError(reason) from error
                log.warning("%s; the run goes on without it; log it later with: fastcifar runs log RUN", reason)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Those values that are finite numbers."""
    return {
        key: value
        for key, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
