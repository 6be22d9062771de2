"""What commands show besides their results: log lines and progress bars, on stderr."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastcifar.errors import describe, one_line
from fastcifar.io.paths import command_line as command_line  # which the layers below show commands by, too

if TYPE_CHECKING:
    from rich.console import Console

    from fastcifar.training import RunFolder


class _StderrHandler(logging.Handler):
    """Plain log lines, above the progress bar if there is one."""

    console: Console | None = None

    def emit(self, record: logging.LogRecord) -> None:
        message = one_line(record.getMessage())  # it may quote a file: no control characters
        text = message if record.levelno < logging.WARNING else f"warning: {message}"
        try:
            if self.console is None:
                click.echo(text, err=True)
            else:
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        except OSError:  # a full disk behind `2> train.log` must not end a training run
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as long as the program)


@contextmanager
def log_to_stderr(debug: bool = False) -> Iterator[None]:
    """In the block, log messages of fastcifar are shown."""
    logger, handler = logging.getLogger("fastcifar"), _StderrHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # warnings of other packages are for developers: --debug shows them
    others, quiet = logging.getLogger("py.warnings"), logging.NullHandler()
    others.addHandler(quiet)
    logging.captureWarnings(not debug)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        others.removeHandler(quiet)
        logger.removeHandler(handler)
        logger.setLevel(level)


class Bars:
    """Progress bars on a terminal, one after the other, nothing elsewhere. A `Reporter` of training runs."""

    def __init__(self, shown: bool = True) -> None:
        from rich import progress
        from rich.console import Console

        self._progress = progress.Progress(
            "{task.description}",
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            "{task.fields[note]}",
            console=Console(stderr=True),
            transient=True,
            disable=not (shown and sys.stderr.isatty()),
        )
        self._task = self._progress.add_task("", total=None, visible=False, note="")

    def __enter__(self) -> Bars:
        if not self._progress.disable:
            self._progress.start()
            self._set_console(self._progress.console)
        return self

    def __exit__(self, *error: object) -> None:
        if not self._progress.disable:
            self._set_console(None)
            self._progress.stop()

    @staticmethod
    def _set_console(console: Console | None) -> None:
        for handler in logging.getLogger("fastcifar").handlers:
            if isinstance(handler, _StderrHandler):
                handler.console = console

    def begin(self, name: str, total: int | None = None) -> None:
        """Start again at 0 of `total`; without a total, which only the first may lack, it shows activity."""
        self._progress.reset(self._task, description=name, total=total, visible=True, note="")

    def advance(self, count: int) -> None:
        """Advance by `count`."""
        self._progress.advance(self._task, count)

    def step(self, step: int, loss: float, remaining_s: float) -> None:
        """Show the loss and the remaining time of the run next to the bar."""
        from fastcifar.training.progress import duration

        self._progress.update(self._task, note=f"loss {loss:.3f}, {duration(remaining_s)} left in all")


def write_report(run: RunFolder) -> Path | None:
    """Write the report of a run and return its path; None, with a warning, if that fails."""
    from fastcifar import report

    try:
        return report.write_report(run)
    except Exception as error:  # noqa: BLE001 (a report that fails must not make a training run fail)
        again = command_line("fastcifar", "report", run.path)
        logging.getLogger(__name__).warning("no report: %s; write it with: %s", describe(error), again)
        return None


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Columns of text."""
    texts = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in texts)


def show_next(*commands: str) -> None:
    """Print the commands that usually come next, each ready to be pasted into a shell."""
    for command in commands:
        click.echo(f"next: {command}")
