"""What commands show: log lines, on stderr, tables, and the commands that come next."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fastcifar.errors import one_line
from fastcifar.io.paths import command_line as command_line  # which the layers below show commands by, too

if TYPE_CHECKING:
    from rich.console import Console


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


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Columns of text."""
    texts = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in texts)


def show_next(*commands: str) -> None:
    """Print the commands that usually come next, each ready to be pasted into a shell."""
    for command in commands:
        click.echo(f"next: {command}")
