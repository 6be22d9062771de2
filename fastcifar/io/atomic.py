"""Atomic writes: a file is complete, or the existing one is still there.

Some file systems (network, FUSE, USB) lack fsync or renaming over a file: these functions then continue, with one
warning for each file system.
"""

from __future__ import annotations

import csv
import errno
import functools
import glob
import io
import logging
import os
import platform
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fastcifar.errors import FastcifarError

log = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)
FSYNC_UNSUPPORTED = (*UNSUPPORTED, errno.ENOTTY, errno.EROFS)
"""EIO, ENOSPC and the like mean that data were lost."""
REPLACE_UNSUPPORTED = (*UNSUPPORTED, errno.EEXIST, errno.EBUSY)
LEFT_AFTER_S = 24 * 3600
_WARNED: set[tuple[str, int]] = set()  # (problem, device): a checkpoint is written many times


def write_bytes(path: Path, content: bytes | memoryview, *, backup: Path | None = None) -> None:
    """Write `content` to `path` atomically: temporary file in the same folder, fsync, rename.

    An existing file is moved to `backup`, if given. Raises FastcifarError, with the space needed, if the disk is full
    or the folder is not writable; the existing file then stays.
    """
    with new_file(path, content, backup=backup):
        pass


@contextmanager
def new_file(path: Path, content: bytes | memoryview, *, backup: Path | None = None) -> Iterator[Path]:
    """Write `content` as `write_bytes` does; the temporary file, whose path this yields, is renamed after the block,
    which can check it. If the block raises, that file is removed, and an existing file stays."""
    # another process may write the same file
    partial = path.with_name(f".{os.getpid()}.{_pid_namespace()}.{path.name}.partial")
    _remove_leftovers(path)
    try:
        with _describe_write_error(path, len(content)), create_file(partial) as file:
            file.write(content)
            fsync(file, path)
        yield partial
        with _describe_write_error(path, len(content)):
            if backup is not None and path.exists():
                replace(path, backup)
            replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@functools.cache
def _pid_namespace() -> str:
    """A name of where the number of a process counts: this machine, or this container on it."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        namespace = ""
    return f"{zlib.crc32(f'{platform.node()} {namespace}'.encode()):08x}"


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` whose processes were killed: here, or elsewhere a day ago or earlier."""
    for file in path.parent.glob(f".*.{glob.escape(path.name)}.partial"):
        process, namespace = file.name.split(".")[1:3]
        with suppress(OSError, ValueError, OverflowError):  # of another user; gone; not a number
            if namespace != _pid_namespace():
                is_left = time.time() - file.stat().st_mtime > LEFT_AFTER_S
            else:
                is_left = not _is_running(int(process))
            if is_left:
                file.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks whether there is such a process
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _describe_write_error(path: Path, num_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            free = shutil.disk_usage(path.parent).free
            reason += f": it takes {num_bytes / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free"
        raise FastcifarError(f"{path}: cannot be written ({reason})") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV, atomically; None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays as a compressed .npz, atomically."""
    import numpy as np

    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_bytes(path, file.getbuffer())


def create_file(path: Path) -> IO[bytes]:
    """Open a new file for writing and reading. An existing file, link or pipe is removed, never written through."""
    path.unlink(missing_ok=True)
    return path.open("x+b")


def open_append(path: str | os.PathLike[str]) -> io.TextIOWrapper:
    """Open a text file to append to it. Raises OSError for a link, or a pipe that nothing reads."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return open(os.open(path, flags, 0o666), "a", encoding="utf-8")


@contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a FastcifarError that names `path`."""
    try:
        yield
    except OSError as error:
        raise FastcifarError(f"{error.filename or path}: cannot be written ({error.strerror or error})") from error


def fsync(file: IO[Any], path: Path) -> None:
    """Flush `file` to the disk; `path`: its final path, for the warning where fsync is not supported."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in FSYNC_UNSUPPORTED:
            raise
        warn_unsupported(path.parent, "has no fsync", error, "the last writes can be lost if the machine fails")


def fsync_folder(folder: Path) -> None:
    """Flush the entries of `folder` to the disk. Not an error where that fails: the files are there."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        warn_unsupported(folder, "has no fsync of folders", error, "the last writes can be lost if the machine fails")


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`, over an existing file.

    Where the file system cannot rename over a file, the existing one is moved away first, and restored on failure.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in REPLACE_UNSUPPORTED or not target.is_file() or not source.is_file():
            raise
        moved = target.with_name(f".{target.name}.replaced")
        moved.unlink(missing_ok=True)  # left by a kill
        os.rename(target, moved)
        try:
            os.rename(source, target)
        except BaseException:
            os.rename(moved, target)
            raise
        warn_unsupported(target.parent, "cannot rename over a file", error, f"a kill in between leaves {moved.name}")
        moved.unlink()


def warn_unsupported(folder: Path, problem: str, error: OSError, advice: str) -> None:
    """Warn, once for each file system, of an operation that it does not support."""
    key = problem, os.stat(folder).st_dev
    if key not in _WARNED:
        _WARNED.add(key)
        log.warning("%s: this file system %s (%s); %s", folder, problem, error.strerror or error, advice)
