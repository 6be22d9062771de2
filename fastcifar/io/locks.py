"""Locks of folders between processes, by flock: released by the system when a process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastcifar.errors import FastcifarError
from fastcifar.io.atomic import warn_unsupported


@contextmanager
def lock_folder(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock of `folder` in the block; where the file system has no locks, warn and continue without.

    busy: raise FastcifarError with this message if another process holds the lock; None: wait for it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise FastcifarError(f"{folder}: {busy}") from None
        except OSError as error:
            warn_unsupported(folder, "has no locks", error, "do not let two programs write there at once")
        yield
    finally:
        os.close(descriptor)
