"""Files of a run folder that somebody else may have written: of bounded size, inside the folder, and never executed."""

from __future__ import annotations

import csv
import io
import math
import os
import stat
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from fastcifar.errors import DataError, Stopped, describe, one_line
from fastcifar.io.reading import load_arrays, parse_yaml
from fastcifar.training.checkpoint import MOST_WEIGHTS, file_sha256

MIB = 2**20
MOST_TEXT, MOST_ARRAYS = 8 * MIB, 512 * MIB
MOST_ROWS = 100_000
WEIGHTS = "weights/best.safetensors"
MOST_LETTERS, MOST_NOTES = 120, 20
JOINERS = "\u200c\u200d"  # within Persian and Indic words, and emoji
Made = TypeVar("Made")


class RunFiles:
    """What can be read of a run folder, and one line for each file that cannot."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[str] = []
        self.not_drawn: list[str] = []
        """Why, for each picture of the page that could not be drawn."""

    @cached_property
    def weights_sha256(self) -> str | None:
        """Of the weights of the run; None if there are none. Raises DataError, see `checked`."""
        path = self.checked(WEIGHTS, MOST_WEIGHTS)
        try:
            return None if path is None else file_sha256(path)
        except (OSError, ValueError, MemoryError) as error:
            raise DataError(f"{WEIGHTS}: cannot be read ({error})") from error

    def attempt(self, make: Callable[[RunFiles], Made | None]) -> Made | None:
        """What `make` makes, or None and a note if a file that it needs is damaged."""
        try:
            return make(self)
        except DataError as error:
            self.note(str(error))
            return None

    def drawn(self, draw: Callable[[], Made]) -> Made | None:
        """What `draw` draws, or None and a note if that fails: the page does without."""
        try:
            return draw()
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 (whatever matplotlib, Pillow or the memory fail with)
            self.not_drawn.append(describe(error))
            self.note(f"a picture could not be drawn: {describe(error)}")
            return None

    def note(self, message: str) -> None:
        """Remember what the reader of the page must know."""
        line = clean(message, 500)
        if line not in self.notes and len(self.notes) <= MOST_NOTES:
            self.notes.append(line if len(self.notes) < MOST_NOTES else "and more")

    def checked(self, name: str, most: int) -> Path | None:
        """The path of a file in the folder; None if there is none.

        Raises DataError if it is a link, or lies behind one, is no file, or has more than `most` bytes.
        """
        path = self.root / name
        if not os.path.lexists(path):
            return None
        try:
            if path.resolve() != self.root.resolve() / name:
                raise DataError(f"{name}: a link, or behind one; only what lies in the run folder is read")
            found = path.lstat()
        except (OSError, RuntimeError) as error:
            raise DataError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{name}: damaged: it is no file")
        if found.st_size > most:
            raise DataError(f"{name}: has {found.st_size / MIB:,.1f} MiB; expected at most {most / MIB:,.0f}")
        return path

    def read(self, name: str, most: int) -> bytes | None:
        """The content of a file; None if there is none. Raises DataError, see `checked`."""
        path = self.checked(name, most)
        if path is None:
            return None
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                return file.read(most)
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror})") from error

    def text(self, name: str) -> str | None:
        """A text of at most 8 MiB, as UTF-8; None if there is none."""
        content = self.read(name, MOST_TEXT)
        if content is None:
            return None
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: damaged: not UTF-8 ({error.reason})") from error

    def facts(self, name: str) -> dict[str, Any] | None:
        """The JSON object or YAML mapping in a file; None if there is no file. Raises DataError if it holds none."""
        text = self.text(name)
        if text is None:
            return None
        try:
            found = parse_yaml(text)
        except ValueError as error:
            raise DataError(f"{name}: damaged: {_one_line(error)}") from error
        if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
            raise DataError(f"{name}: damaged: it holds no names with values")
        return found

    def rows(self, name: str, columns: Sequence[str]) -> list[dict[str, str]] | None:
        """The rows of a CSV file with these columns; None if there is no file. Raises DataError if it has others."""
        text = self.text(name)
        if text is None:
            return None
        try:
            head, *lines = list(csv.reader(io.StringIO(text), strict=True)) or [[]]
        except csv.Error as error:
            raise DataError(f"{name}: damaged: {_one_line(error)}") from error
        if tuple(head) != tuple(columns):
            raise DataError(f"{name}: damaged: its first line is not {','.join(columns)}")
        if len(lines) > MOST_ROWS or any(len(line) != len(columns) for line in lines):
            raise DataError(f"{name}: damaged: expected {len(columns)} values a line, and at most {MOST_ROWS:,} lines")
        return [dict(zip(columns, line, strict=True)) for line in lines]

    def arrays(self, name: str, keys: Sequence[str]) -> dict[str, npt.NDArray[Any]] | None:
        """Arrays of an .npz file, of at most 512 MiB in all; None if there is no file. Nothing is unpickled.

        Raises DataError if one is missing, pickled, or not what its header says.
        """
        content = self.read(name, MOST_ARRAYS)
        if content is None:
            return None
        try:
            return load_arrays(content, keys, MOST_ARRAYS)
        except ValueError as error:
            raise DataError(f"{name}: damaged: {_one_line(error)}") from error


def number(name: str, facts: dict[str, Any], key: str, low: float = -1e30, high: float = 1e30) -> float | None:
    """A finite number among the facts of the file `name`; None if it is not there. Raises DataError if it is none."""
    value = facts.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise DataError(f"{name}: damaged: {key} is {clean(value, 60)!r}; expected a number, {low:g}..{high:g}")
    return float(value)


def parsed(name: str, row: dict[str, str], key: str, low: float = -1e30, high: float = 1e30) -> float:
    """The finite number in a row of the table `name`. Raises DataError if it is none."""
    try:
        value = float(row[key])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise DataError(f"{name}: damaged: {key} is {clean(row[key], 60)!r}; expected a number, {low:g}..{high:g}")
    return value


def clean(value: object, most: int = MOST_LETTERS) -> str:
    """As text that can be shown and stored: one line of at most `most` characters, without those that steer."""
    text = str(value)
    kept = text[: 2 * most]
    shown = "".join(c if c.isprintable() or c in JOINERS else " " if c.isspace() else "\ufffd" for c in kept)
    shown = " ".join(shown.split())
    return shown if len(shown) <= most and len(text) <= 2 * most else shown[: most - 1] + "…"


def _one_line(error: BaseException) -> str:
    return clean(one_line(error).strip("'\""))
