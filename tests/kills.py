"""Simulated kills and full disks: after the n-th change of the file system, a folder changes no more.

An audit hook sees each file that is opened for writing, and each name that is created, moved or removed. A killed
program leaves the state before its last change; a file that this change opened is empty. `finally` blocks run, but
change nothing. The same holds for a full disk.
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
    """Simulated kill: nothing catches it."""


class Changes:
    """The changes in `folder`, up to number `fatal`, at which the program is killed or the disk is full."""

    def __init__(self, folder: Path, fatal: int | None, full: bool) -> None:
        self.folder, self.fatal, self.full = str(folder), fatal, full
        self.seen: list[str] = []
        self.died = self.opening = False

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.opening:
            return
        writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITES
        if not writes and (self.full or event not in _NAMES):  # a full disk still allows renames
            return
        paths = [
            os.fsdecode(arg) for arg in (args[:1] if writes else args) if isinstance(arg, (str, bytes, os.PathLike))
        ]
        if not any(path.startswith(self.folder) for path in paths):
            return
        if self.died or len(self.seen) == self.fatal:
            if writes and (self.full or not self.died):
                self.leave_empty(paths[0], args[2])
            self.died = True
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), paths[0])
            raise Killed(f"{event} {paths}")
        self.seen.append(f"{event} {' '.join(path.removeprefix(self.folder) for path in paths)}")

    def leave_empty(self, path: str, flags: int) -> None:
        """Open the file, which creates or truncates it."""
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
    """Once: a hook cannot be removed."""
    sys.addaudithook(_hook)


@contextmanager
def changes_in(folder: Path, fatal: int | None = None, *, full: bool = False) -> Iterator[Changes]:
    """Watch `folder` in the block, which is killed, and left, at change number `fatal`, if given.

    full: count only files that are opened for writing; from number `fatal` on, the disk is full instead.
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
