"""Benchmarks, a script per question: `python -m benchmarks.NAME`, from the root of a checkout.

Here: what the scripts share. An error is one line and an exit code, as in `fastcifar` itself.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from fastcifar.bench.results import format_table
from fastcifar.cli.signals import signals_as_exceptions
from fastcifar.errors import FastcifarError, MissingExtraError, Stopped, UsageError, one_line

ROOT = Path(__file__).resolve().parent.parent
ROW_KEYS = ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "first_batch_s")
GOES_ON = "benchmarks.goes_on"
"""In `Context.meta`: whether a script that is stopped goes on with the same command."""

OPTIONS = {
    "data_dir": click.option("--data-dir", default="data", show_default=True, envvar="FASTCIFAR_DATA_DIR"),
    "device": click.option("--device", default="cpu", show_default=True),
    "repeats": click.option("--repeats", default=5, show_default=True, type=click.IntRange(5)),
    "save": click.option("--save/--no-save", default=True, show_default=True, help="Append to benchmarks/results/."),
    "as_json": click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON."),
}


def options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of these names in `OPTIONS`, and --save and --json, to a script."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for name in reversed((*names, "save", "as_json")):
            function = OPTIONS[name](function)
        return function

    return decorate


@contextmanager
def stop_signals() -> Iterator[None]:
    """In the block, Ctrl-C, SIGTERM and a hang-up raise exceptions, so that processes of this one are ended too."""
    with signals_as_exceptions():
        hang_up = signal.getsignal(signal.SIGHUP)
        if hang_up is signal.SIG_DFL:  # nohup ignores it
            signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, hang_up)


class Command(click.Command):
    """A script: an error that a user can cause, and a signal that ends it, have no traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            with stop_signals():
                return super().invoke(context)
        except (KeyboardInterrupt, Stopped) as stop:
            hint = "; the same command goes on where it stopped" if context.meta.get(GOES_ON) else ""
            with suppress(OSError):  # the terminal may be closed
                click.echo(f"Stopped{hint}.", err=True)
            context.exit(stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT)
        except (FastcifarError, OSError, ModuleNotFoundError) as error:
            failure = click.ClickException(one_line(error))
            if isinstance(error, FastcifarError):
                failure.exit_code = error.exit_code
            elif isinstance(error, ModuleNotFoundError):
                failure.exit_code = MissingExtraError.exit_code
            raise failure from error


def row(name: str, **values: Any) -> dict[str, Any]:
    """A row of results, with the keys that all scripts have; None where there is no value."""
    return {**dict.fromkeys(ROW_KEYS), "name": name, **values}


def show(rows: list[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Print the rows; before they are saved, which may fail."""
    click.echo(json.dumps(rows) if as_json else format_table(rows, columns))


def check_measured(rows: list[dict[str, Any]], required: Container[str] = ()) -> None:
    """Raise FastcifarError if a row has no value; only one that is not `required` may be skipped. After `show`, which
    prints the others."""
    for each in rows:
        note = each.get("note", "")
        if note and (each["name"] in required or not note.startswith("skipped")):
            raise FastcifarError(f"{each['name']}: {note}")


def save_rows(script: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Append a line to the results of a script, given its `__file__`: the rows, and the `environment` of them all."""
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{Path(script).stem}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**about, "rows": rows}) + "\n")


def lines_of(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file that have these keys, one in a line. A line that was cut off or damaged is left out,
    as is a missing file."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and all(key in entry for key in keys):
            yield entry


def require_same(entry: dict[str, Any], about: dict[str, Any], keys: Sequence[str], what: str, remedy: str) -> None:
    """Raise UsageError if a line of an earlier call, `what`, differs from this call in one of these keys."""
    for key in keys:
        if entry.get(key) != about.get(key):
            raise UsageError(f"{what} has {key} {entry.get(key)!r}; expected {about.get(key)!r}: {remedy}")


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Append a line, on the disk when this returns: the machine may be taken away at any time."""
    cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut + json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
