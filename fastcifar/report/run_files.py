"""Bounded reads of the files of a run folder, which may be damaged or of unknown origin; nothing is executed."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from fastcifar.errors import CheckpointError, DataError, describe, one_line
from fastcifar.io.reading import read_bytes, read_mapping
from fastcifar.training.weights import file_sha256

MAX_TEXT = 8 * 2**20
MAX_ROWS = 100_000
METRICS, CONFIG, ENVIRONMENT = "metrics.json", "config.yaml", "env.json"
WEIGHTS = "weights/best.safetensors"
MAX_LENGTH, MAX_NOTES = 120, 20
JOINERS = "\u200c\u200d"  # within Persian and Indic words, and emoji
T = TypeVar("T")


class RunFiles:
    """The files of a run folder, by their names in it; and a note for each that cannot be used."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[str] = []
        self.not_drawn: list[str] = []
        """The reason for each figure that could not be drawn."""

    @cached_property
    def weights_sha256(self) -> str | None:
        """Of the weights of the run; None if there are none. Raises DataError if they cannot be read."""
        return self.load(WEIGHTS, file_sha256)

    def attempt(self, read: Callable[[RunFiles], T | None]) -> T | None:
        """The result of `read`; None, with a note, if a file is damaged."""
        try:
            return read(self)
        except (DataError, CheckpointError) as error:
            self.note(str(error).removeprefix(f"{self.root}/"))
            return None

    def drawn(self, draw: Callable[[], T]) -> T | None:
        """The result of `draw`; None, with a note, if it fails: the page is complete without."""
        try:
            return draw()
        except Exception as error:  # noqa: BLE001 (whatever matplotlib, Pillow or the memory fail with)
            self.not_drawn.append(describe(error))
            self.note(f"a figure could not be drawn: {describe(error)}")
            return None

    def note(self, message: str) -> None:
        """Add a line to the notes of the page, once."""
        line = clean(message, 500)
        if line not in self.notes and len(self.notes) <= MAX_NOTES:
            self.notes.append(line if len(self.notes) < MAX_NOTES else "and more")

    def load(self, name: str, read: Callable[[Path], T]) -> T | None:
        """What `read` reads from the file; None if there is none. Raises DataError, which names the file, if it cannot
        be read or is damaged."""
        if not os.path.lexists(self.root / name):
            return None
        try:
            return read(self.root / name)
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror})") from error
        except (ValueError, csv.Error) as error:
            raise DataError(f"{name}: damaged: {one_line(error)}") from error

    def mapping(self, name: str) -> dict[str, Any] | None:
        """The JSON object or YAML mapping in a file; see `load`."""
        return self.load(name, lambda path: read_mapping(path, MAX_TEXT))

    def rows(self, name: str, columns: Sequence[str]) -> list[dict[str, str]] | None:
        """The rows of a CSV file with these columns; see `load`."""
        return self.load(name, lambda path: _read_rows(path, columns))


def _read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    text = read_bytes(path, MAX_TEXT).decode("utf-8")
    head, *lines = list(csv.reader(io.StringIO(text), strict=True)) or [[]]
    if tuple(head) != tuple(columns):
        raise ValueError(f"its first line is not {','.join(columns)}")
    if len(lines) > MAX_ROWS or any(len(line) != len(columns) for line in lines):
        raise ValueError(f"expected {len(columns)} values per line, and at most {MAX_ROWS:,} lines")
    return [dict(zip(columns, line, strict=True)) for line in lines]


def number(name: str, values: Mapping[str, Any], key: str) -> float:
    """The finite number `key` among the values of the file `name`. Raises DataError if it is another value."""
    given: Any = values.get(key)
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not abs(value) <= 1e15:
        raise DataError(f"{name}: damaged: {key} is {clean(given, 60)!r}; expected a finite number")
    return value


def interval(name: str, values: Mapping[str, Any], key: str) -> str:
    """The interval `key`, two shares, in words; raises as `number`."""
    bounds = values.get(key)
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise DataError(f"{name}: damaged: {key} is {clean(bounds, 60)!r}; expected two numbers")
    low, high = (number(name, {key: bound}, key) for bound in bounds)
    return f"{low:.2%} to {high:.2%}"


def clean(value: object, max_length: int = MAX_LENGTH) -> str:
    """As text that can be shown and stored: one line of at most `max_length` characters, no control characters."""
    text = str(value)
    kept = text[: 2 * max_length]
    shown = "".join(c if c.isprintable() or c in JOINERS else " " if c.isspace() else "\ufffd" for c in kept)
    shown = " ".join(shown.split())
    return shown if len(shown) <= max_length and len(text) <= 2 * max_length else shown[: max_length - 1] + "…"
