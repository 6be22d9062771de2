"""Trackio: a run in the user's local database (TRACKIO_DIR), which `trackio show` shows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import PIL.Image

from fastcifar.loggers.base import RunInfo, Values

PROJECT = "fastcifar"


@contextmanager
def _quiet() -> Iterator[None]:
    """In the block, nothing is printed: trackio greets on stdout, which belongs to our results."""
    with redirect_stdout(io.StringIO()):
        yield


with _quiet():
    import trackio


class TrackioLogger:
    """The run as `step/…` by step, `epoch/…` and `final/…` by epoch, and pictures."""

    def __init__(self) -> None:
        self._run: Any = None
        self._epoch = 0

    def begin(self, run: RunInfo) -> None:
        with _quiet():
            self._run = trackio.init(
                project=PROJECT,
                name=run.name,
                group=run.group,
                config=dict(run.settings),
                resume="allow" if run.is_resumed else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def steps(self, rows: Sequence[tuple[int, Values]]) -> None:
        for step, values in rows:
            self._log("step", values, step)

    def epoch(self, row: Values) -> None:
        self._epoch = int(row["epoch"])
        self._log("epoch", {key: value for key, value in row.items() if key != "epoch"}, self._epoch)

    def finish(self, epoch: int, scores: Values) -> None:
        self._epoch = epoch
        self._log("final", scores, epoch)

    def image(self, name: str, png: bytes) -> None:
        self._log("final", {name: trackio.Image(PIL.Image.open(io.BytesIO(png)))}, self._epoch)

    def close(self) -> None:
        if self._run is not None:
            with _quiet():
                trackio.finish()  # type: ignore[no-untyped-call]

    def _log(self, group: str, values: Any, step: int) -> None:
        with _quiet():
            self._run.log({f"{group}/{key}": value for key, value in values.items()}, step=step)
