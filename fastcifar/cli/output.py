"""What the commands show: log lines and progress on stderr; results, which the commands print, on stdout."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from fastcifar.errors import Stopped, describe
from fastcifar.io.paths import command_line as command_line  # which the layers below show commands by, too

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from fastcifar.training import RunFolder


class _StderrHandler(logging.Handler):
    """Log lines as plain lines; above the bar, where there is one."""

    console: Console | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(record)
        except OSError:  # a full disk behind `2> train.log` ends no training: what is logged is lost, as in log.txt
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as long as the program)

    def _write(self, record: logging.LogRecord) -> None:
        text = record.getMessage() if record.levelno < logging.WARNING else f"warning: {record.getMessage()}"
        if self.console is None:
            click.echo(text, err=True)
        else:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def log_to_stderr(debug: bool = False) -> Iterator[None]:
    """In the block, what fastcifar logs is shown."""
    logger, handler = logging.getLogger("fastcifar"), _StderrHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # warnings of other people's packages are for developers: --debug shows them
    others, quiet = logging.getLogger("py.warnings"), logging.NullHandler()
    others.addHandler(quiet)
    if not debug:
        logging.getLogger("matplotlib").addHandler(quiet)  # of a matplotlibrc, which does not matter here, and of fonts
    logging.captureWarnings(not debug)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        others.removeHandler(quiet)
        logging.getLogger("matplotlib").removeHandler(quiet)
        logger.removeHandler(handler)
        logger.setLevel(level)


class Bars:
    """Progress bars on a terminal, nothing elsewhere. Also the `Reporter` of a training run."""

    def __init__(self, shown: bool = True) -> None:
        self._shown = shown and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._current: TaskID | None = None

    def __enter__(self) -> Bars:
        if self._shown:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
            self._tell_handlers(self._progress.console)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._tell_handlers(None)
            self._progress.stop()

    @staticmethod
    def _tell_handlers(console: Console | None) -> None:
        for handler in logging.getLogger("fastcifar").handlers:
            if isinstance(handler, _StderrHandler):
                handler.console = console

    def bar(self, name: str, total: int) -> None:
        """One more bar, to be advanced by name."""
        if self._progress is not None:
            self._tasks[name] = self._progress.add_task(name, total=total, note="")

    def advance_bar(self, name: str, count: int) -> None:
        """`count` more are done of the bar `name`."""
        if self._progress is not None:
            self._progress.advance(self._tasks[name], count)

    def begin(self, what: str, total: int | None) -> None:
        """Replace the current bar; without a total it only shows that something goes on."""
        if self._progress is not None:
            self.end()
            self._current = self._progress.add_task(what, total=total, note="")

    def end(self) -> None:
        """Take the current bar away."""
        if self._progress is not None and self._current is not None:
            self._progress.remove_task(self._current)
            self._current = None

    def advance(self, count: int) -> None:
        """`count` more are done of the current bar."""
        if self._progress is not None and self._current is not None:
            self._progress.advance(self._current, count)

    def step(self, step: int, loss: float, rest_s: float) -> None:
        """Show the loss and the time left of the whole run next to the current bar."""
        if self._progress is not None and self._current is not None:
            from fastcifar.training.progress import duration

            self._progress.update(self._current, note=f"loss {loss:.3f}, {duration(rest_s)} left in all")


def write_report(run: RunFolder) -> Path | None:
    """The path of the run's report, written anew; None, with a warning, if it cannot be written: what a command did
    before is not lost by that."""
    from fastcifar import report

    try:
        return report.write_report(run)
    except Stopped:
        raise
    except Exception as error:  # noqa: BLE001 (hours of training do not end in an error for the sake of a page)
        again = command_line("fastcifar", "report", run.path)
        logging.getLogger(__name__).warning("no report: %s; write it with: %s", describe(error), again)
        return None


def table(rows: list[tuple[str, Any]]) -> str:
    """Two columns of text."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def show_next(*commands: str) -> None:
    """Print the commands that usually follow, each ready to be pasted into a shell."""
    for command in commands:
        click.echo(f"next: {command}")
