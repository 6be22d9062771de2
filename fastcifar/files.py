"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastcifar.errors import FastcifarError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with the path of a temporary file beside `path`; fsync it and rename it into place.

    Raises FastcifarError if the disk is full or the folder cannot be written; what was at `path` is then still there.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            write(partial)
            descriptor = os.open(partial, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise FastcifarError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a FastcifarError that names `path`."""
    try:
        yield
    except OSError as error:
        raise FastcifarError(f"{error.filename or path}: cannot be written ({error.strerror or error})") from error
