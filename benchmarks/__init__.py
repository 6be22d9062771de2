"""One script for each question. A failure is one line and an exit code, as in the program itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fastcifar import measure
from fastcifar.errors import FastcifarError, one_line

ROW_KEYS = ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "first_batch_s")


class Command(click.Command):
    """What a script is: an error that a user can cause or meet has no traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (FastcifarError, OSError) as error:
            failure = click.ClickException(one_line(error))
            failure.exit_code = error.exit_code if isinstance(error, FastcifarError) else 1
            raise failure from error


def row(name: str, **found: Any) -> dict[str, Any]:
    """A row of results: what every script's rows have, None where this one has none, and what this one found."""
    return {**dict.fromkeys(ROW_KEYS), "name": name, **found}


def last_line(stderr: str) -> str:
    """Of what a process said, its last line: why it failed."""
    return (stderr.strip().splitlines() or ["it ended without a word"])[-1]


def failed(name: str, stderr: str) -> click.ClickException:
    """Of a process that a script began: the last line says why."""
    return click.ClickException(f"{name}: {last_line(stderr)}")


def show(rows: list[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Print the rows: before they are saved, which may fail."""
    click.echo(json.dumps(rows) if as_json else measure.table(rows, columns))


def save_rows(script: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Add a line to the results of the script of that path."""
    path = Path(script)
    measure.save(path.resolve().parent / "results", path.stem, rows, about)
