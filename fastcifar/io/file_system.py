"""What some file systems lack (network, FUSE, USB): locks, fsync, renaming over a file. Without them it goes on, with
one warning for each file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fastcifar.errors import FastcifarError
from fastcifar.io.paths import why_missing

log = logging.getLogger(__name__)
NOT_SUPPORTED = (
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.ENOTTY,
    errno.EPERM,
    errno.EACCES,
    errno.EROFS,
)
"""What fsync answers where it cannot be had. EIO, ENOSPC and the like say that data were lost."""
NOT_OVER_A_FILE = (errno.EEXIST, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBUSY)
_WARNED: set[tuple[str, int]] = set()  # by what is lacking, and where: a checkpoint is written again and again


@contextmanager
def locked(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock of `folder` in the block; where it cannot be had, warn and go on without.

    Raises FastcifarError with the message `busy` if another process holds it; waits for it if there is no message.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise FastcifarError(f"{folder}: {busy}") from None
        except OSError as error:
            _warn(folder, "has no locks", error, "do not let two programs write there at once")
        yield
    finally:
        os.close(descriptor)


def sync(file: IO[Any], path: Path) -> None:
    """Flush `file`, which is to be at `path`, and have the system write it to the disk, where it can be told to."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        _warn(path.parent, "has no fsync", error, "what was written last can be lost if the machine fails")


def sync_folder(folder: Path) -> None:
    """Have the system write the names in `folder` to the disk. Many file systems cannot, and the files are there."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _warn(folder, "has no fsync of folders", error, "what was written last can be lost if the machine fails")


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`, over what is there.

    Where the file system renames over no file, the old one is moved out of the way first, and back after a failure.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in NOT_OVER_A_FILE or not target.is_file() or not source.is_file():
            raise
        aside = target.with_name(f".{target.name}.replaced")
        try:
            aside.unlink(missing_ok=True)  # of an earlier kill
            os.rename(target, aside)
        except OSError:
            raise error from None
        try:
            os.rename(source, target)
        except BaseException:
            os.rename(aside, target)
            raise
        _warn(target.parent, "does not rename over a file", error, f"a kill at the wrong moment leaves {aside.name}")
        with contextlib.suppress(OSError):
            aside.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """A link at `target` to a file or folder; a copy where the file system has no links, as FAT."""
    try:
        os.symlink(source, target)
    except OSError:
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, if need be. Raises FastcifarError if something else is there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        why = "a file, not a folder" if folder.is_file() else why_missing(folder)
        raise FastcifarError(f"{folder}: {why}; expected a folder, or a path where one can be made") from error
    except OSError as error:
        why = why_missing(folder) if error.errno == errno.ELOOP else f"cannot be made ({error.strerror or error})"
        raise FastcifarError(f"{folder}: {why}; expected a folder, or a path where one can be made") from error


def _warn(folder: Path, what: str, error: OSError, advice: str) -> None:
    try:
        where = what, os.stat(folder).st_dev
    except OSError:
        where = what, -1
    if where not in _WARNED:
        _WARNED.add(where)
        log.warning("%s: this file system %s (%s); %s", folder, what, error.strerror or error, advice)
