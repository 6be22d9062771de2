"""Locks of folders between processes, by flock: released by the system when a process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastcifar.errors import FastcifarError
from fastcifar.io.atomic import warn_unsupported
from fastcifar.system.cgroups import read_lines

NETWORK = (
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.glusterfs",
    "fuse.sshfs",
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "smb3",
)
"""File systems that several machines share. Most pass on the locks of files alone: that of a folder would hold on one
machine, without an error."""
LOCK_FILE = ".lock"
_HELD: set[int] = set()


@contextmanager
def lock_folder(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock of `folder` in the block; where the file system has no locks, warn and continue without.

    busy: raise FastcifarError with this message if another process holds the lock; None: wait for it.
    """
    descriptor = _open_lockable(folder)
    _HELD.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise FastcifarError(f"{folder}: {busy}") from None
        except OSError as error:
            warn_unsupported(folder, "has no locks", error, "do not let two programs write there at once")
        yield
    finally:
        if descriptor in _HELD:  # not in a child process
            _HELD.remove(descriptor)
            os.close(descriptor)


def _open_lockable(folder: Path) -> int:
    """A descriptor of the folder, or of a file in it where several machines may share it."""
    if _file_system(folder) in NETWORK:
        with suppress(OSError):  # read-only
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            return os.open(folder / LOCK_FILE, flags, 0o666)
    return os.open(folder, os.O_RDONLY | os.O_CLOEXEC)


def _file_system(folder: Path) -> str:
    """The type of its file system, e.g. 'ext4' or 'nfs4'; empty where Linux does not list it."""
    device = os.stat(folder).st_dev
    for words in map(str.split, read_lines(Path("/proc/self/mountinfo"))):
        if words[2] == f"{os.major(device)}:{os.minor(device)}":
            return words[words.index("-") + 1]
    return ""


def _close_all() -> None:
    """A child process that is forked, such as a worker of a loader, would hold the locks of a parent that is killed."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_close_all)
