"""Kills and full disks in process: from a chosen change of the file system on, nothing in a folder is changed any more.

An audit hook of Python sees each file that is opened for writing, and each name that is made, moved or removed. What a
killed program leaves is what was there before the change at which it was killed, and, if that is a file that it opened,
this file with nothing written to it; `finally` blocks run here, and can change nothing. So is what a full disk leaves.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NAMES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")


class Killed(BaseException):
    """The program is dead: nothing catches this."""


class Changes:
    """What was changed in `folder` so far, and the number of the change at which all ends, or the disk is full."""

    def __init__(self, folder: Path, fatal: int | None, full: bool) -> None:
        self.folder, self.fatal, self.full = str(folder), fatal, full
        self.made: list[str] = []
        self.died = self.opening = False

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.opening:
            return
        writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITES
        if not writes and (self.full or event not in _NAMES):  # on a full disk files can still be renamed and removed
            return
        places = [
            os.fsdecode(arg) for arg in (args[:1] if writes else args) if isinstance(arg, (str, bytes, os.PathLike))
        ]
        if not any(place.startswith(self.folder) for place in places):
            return
        if self.died or len(self.made) == self.fatal:
            if writes and (self.full or not self.died):
                self.leave_empty(places[0], args[2])
            self.died = True
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), places[0])
            raise Killed(f"{event} {places}")
        self.made.append(f"{event} {' '.join(place.removeprefix(self.folder) for place in places)}")

    def leave_empty(self, path: str, flags: int) -> None:
        """Open the file, which makes it or cuts it, and write nothing."""
        self.opening = True
        try:
            with suppress(OSError):
                os.close(os.open(path, flags, 0o666))
        finally:
            self.opening = False


_watched: list[Changes] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    for changes in _watched:
        changes.see(event, args)


@functools.cache
def _install() -> None:
    """Once: a hook stays as long as the process."""
    sys.addaudithook(_hook)


@contextmanager
def changes_in(folder: Path, fatal: int | None = None, *, full: bool = False) -> Iterator[Changes]:
    """Watch `folder` in the block; if `fatal` is given, the block is killed, and left, at the change of that number.

    full: count only files that are opened for writing; from that number on there is no space for them, and the block
    goes on.
    """
    _install()
    changes = Changes(folder, fatal, full)
    _watched.append(changes)
    try:
        yield changes
    except Killed:
        pass
    finally:
        _watched.remove(changes)
