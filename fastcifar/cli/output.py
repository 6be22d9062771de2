"""What commands show: log lines, on stderr, tables, and the commands that come next."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fastcifar.errors import one_line
from fastcifar.io.paths import command_line as command_line  # which the layers below show commands by, too

if TYPE_CHECKING:
    from rich.console import Console

    from fastcifar.config import TrainConfig
    from fastcifar.training import RunFolder

MIN_WRAPPED = 20
DONE_FILES = {"explain": "explain/index.csv", "eval": "eval/*/metrics.json", "export": "export/*"}
"""In the folder of a run, by the command that writes them."""


class _StderrHandler(logging.Handler):
    """Plain log lines, above the progress bar if there is one."""

    console: Console | None = None

    def emit(self, record: logging.LogRecord) -> None:
        message = one_line(record.getMessage())  # it may quote a file: no control characters
        is_terminal = self.console is not None or sys.stderr.isatty()  # early versions of rich hide it
        text = f"warning: {message}" if record.levelno >= logging.WARNING else _between_fields(message, is_terminal)
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


def table(rows: Sequence[Sequence[Any]], optional: Sequence[int] = ()) -> str:
    """Columns of text. On a terminal that is too narrow for them, the columns `optional` are left out, one after the
    other, until the rest fits; then the last column is wrapped."""
    texts = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    available = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    shown = list(range(len(widths)))
    for column in optional:
        if sum(widths[i] + 2 for i in shown) - 2 > available:
            shown.remove(column)
    *first, last = shown
    indent = sum(widths[i] + 2 for i in first)
    lines = []
    for row in texts:
        end = _wrapped(row[last], available - indent)
        lines.append("".join(row[i].ljust(widths[i] + 2) for i in first) + end[0])
        lines += [" " * indent + text for text in end[1:]]
    return "\n".join(map(str.rstrip, lines))


def _wrapped(text: str, width: int) -> list[str]:
    """In lines of at most `width`, unless that is very narrow; words, and thus paths, are not broken."""
    if len(text) <= width or width < MIN_WRAPPED:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [text]


def train_command(
    class_counts: Sequence[int], *arguments: str | os.PathLike[str], config: TrainConfig | None = None
) -> str:
    """The command that trains on images of which each class has so many: with --batch-size where that of `config`, by
    default the default one, is too large for them."""
    import numpy as np

    from fastcifar.config import TrainConfig
    from fastcifar.data.statistics import fitting_batch_size, held_out_by_default

    counts, config = np.array(class_counts), config or TrainConfig()
    val_size = config.data.val_size
    num_train = int(counts.sum() - (held_out_by_default(counts).sum() if val_size is None else val_size))
    if num_train >= config.batch_size:
        return command_line("fastcifar", "train", *arguments)
    return command_line("fastcifar", "train", *arguments, "--batch-size", str(fitting_batch_size(num_train)))


def _between_fields(text: str, is_terminal: bool) -> str:
    """A line of fields, with two spaces between them, on as many lines as a narrow terminal needs."""
    available = shutil.get_terminal_size().columns if is_terminal else sys.maxsize
    line, *fields = text.split("  ")
    lines = [line]
    for each in fields:
        if len(lines[-1]) + 2 + len(each) <= available:
            lines[-1] += f"  {each}"
        else:
            lines.append(f"  {each}")
    return "\n".join(lines)


def show_next(*commands: str) -> None:
    """Print the commands that usually come next, each ready to be pasted into a shell once a word in capitals, which
    stands for files of the user, is replaced."""
    for command in commands:
        click.echo(f"next: {command}")


def show_next_on_run(context: click.Context, run: RunFolder, *, all_correct: bool = False) -> None:
    """Print what is left to do with a trained run: explain and eval, then predict and export.

    all_correct: whether no test image is misclassified, so that explain draws others.
    """
    from fastcifar.cli.settings import as_flags, given_on_command_line

    model = as_flags(context, given_on_command_line(context, ["model"]))
    needed = as_flags(context, given_on_command_line(context, ["model", "data_dir"]))
    done = {name for name, files in DONE_FILES.items() if any(run.path.glob(files))}
    commands = {
        "explain": [run.path, *(["--correct"] if all_correct else []), *needed],
        "eval": [run.path, *needed],
        "predict": ["IMAGES", "--run", run.path, *model],
        "export": [run.path, *needed],
    }
    if not (all_correct and context.info_name == "explain"):  # which has drawn nothing
        done.add(context.info_name or "")
    left = [name for name in commands if name not in done]
    first = [name for name in left if name in ("explain", "eval")]
    show_next(*(command_line("fastcifar", name, *commands[name]) for name in first or left))
