"""The open file of a beton: reads by position, a private copy in memory, detection of modifications."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastcifar.errors import DataError
from fastcifar.io.paths import SPLIT_FILES, command_line, why_missing
from fastcifar.io.reading import open_regular

CHUNK_BYTES = 2**20
Bytes: TypeAlias = "npt.NDArray[np.uint8]"


class BetonFile:
    """An open file, closed when nothing refers to it. Threads and forked processes may share it."""

    def __init__(self, path: Path, descriptor: int, *, in_memory: bool = False, sha256: str | None = None) -> None:
        self.path, self.descriptor, self._sha256 = path, descriptor, sha256
        self.size, self._modified_ns = self._stat()  # when it was opened
        self.memory: Bytes | None = None
        """The whole file, (size,) uint8, read-only, if this is a private copy."""
        self.loaded: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
        """The whole file as kernels read it, while a loader uses it: by type of kernel and device."""
        if in_memory:
            mapped = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ) if self.size else b""
            self.memory = np.frombuffer(mapped, dtype=np.uint8)
        weakref.finalize(self, os.close, descriptor).atexit = False  # a loader may still read at exit

    def read(self, start: int, size: int) -> Bytes:
        """`size` bytes from byte `start`, (size,) uint8. Raises DataError if the file ends before."""
        out = np.empty(size, np.uint8)
        self.read_into(out, start)
        return out

    def read_into(self, out: Bytes, start: int) -> None:
        """Fill `out`, (size,) uint8, from byte `start`. Raises DataError if the file ends before.

        Reads, not a map: a page of a map that is lost, because the file became shorter, kills the process.
        """
        done = 0
        while done < len(out):
            count = os.preadv(self.descriptor, [out[done:].data], start + done)
            if not count:
                raise DataError(f"{self.path}: ends at byte {start + done}, before the end of its data; convert again")
            done += count

    def sha256(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        return self._sha256 or _copy(self)

    def check_unchanged(self) -> None:
        """Raise DataError if size or modification time are not those at opening. A private copy never changes."""
        if self.memory is None and self._stat() != (self.size, self._modified_ns):
            raise DataError(f"{self.path}: was modified while it was in use; start again with the new file")

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns


def open_file(path: Path) -> BetonFile:
    """Open the file of a beton. Raises DataError if that fails."""
    try:
        with open_regular(path) as file:
            return BetonFile(path, os.dup(file.fileno()))
    except ValueError:
        inside = path / "train.beton"
        expected = f"a beton, e.g. {inside}" if inside.is_file() else "a beton, made with 'fastcifar convert'"
        raise DataError(f"{path}: not a file; expected {expected}") from None
    except OSError as error:
        if path.exists():
            raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
        folder: list[str | Path] = []
        if path.parent not in (Path("data"), Path()) and path.name in SPLIT_FILES:
            folder = ["--data-dir", path.parent]
        convert = command_line("fastcifar", "convert", *folder)
        raise DataError(f"{path}: {why_missing(path)}; make it with: {convert}") from None


def open_private_copy(path: Path) -> BetonFile:
    """A copy of the file in memory, or without a name on the disk where the system has no memfd."""
    original = open_file(path)
    try:
        with _create_unnamed(path.name) as copy:
            sha256 = _copy(original, copy)
            copy.flush()
            original.check_unchanged()
            return BetonFile(path, os.dup(copy.fileno()), in_memory=True, sha256=sha256)
    except (OSError, MemoryError) as error:
        raise DataError(f"{path}: cannot be copied into memory ({error}); use --loader ffcv for large files") from error


def _copy(file: BetonFile, copy: IO[bytes] | None = None) -> str:
    """Write a file into `copy`, while a second thread computes the SHA-256 of the same bytes, which is returned."""
    digest, buffers = hashlib.sha256(), np.empty((2, CHUNK_BYTES), np.uint8)
    with ThreadPoolExecutor(1) as hashing:
        hashed = hashing.submit(digest.update, b"")
        for number, start in enumerate(range(0, file.size, CHUNK_BYTES)):  # a file that grows is not followed
            chunk = buffers[number % 2, : file.size - start]
            file.read_into(chunk, start)
            hashed.result()  # of the chunk before: its buffer is free for the next
            hashed = hashing.submit(digest.update, chunk.data)
            if copy is not None:
                copy.write(chunk.data)
    return digest.hexdigest()


def _create_unnamed(name: str) -> IO[bytes]:
    with contextlib.suppress(OSError, AttributeError):  # old kernels and some containers have no memfd
        return open(os.memfd_create(name[:200], os.MFD_CLOEXEC), "wb")
    return tempfile.TemporaryFile()
