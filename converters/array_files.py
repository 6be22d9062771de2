"""Arrays in .npy and .npz files of unknown origin: headers are checked, values read by position, never with pickle."""

from __future__ import annotations

import io
import math
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fastcifar.converters.archives import READ_ERRORS, require_few_entries
from fastcifar.data.file_kind import HEAD_BYTES, file_kind
from fastcifar.data.image_files import ImageError
from fastcifar.errors import DataError, FastcifarError, escape, one_line
from fastcifar.io.atomic import FULL
from fastcifar.io.reading import open_regular

MAX_HEADER = 2**16
MAX_ARRAYS = 1_000
MAX_AXES = 8
MAX_LOAD_BYTES = 2**28
BLOCK_BYTES = 2**22
UINT8 = np.dtype(np.uint8)
ERRORS: tuple[type[Exception], ...] = (*READ_ERRORS, OverflowError, MemoryError, TypeError, KeyError, struct.error)
"""What readers of damaged files raise."""
Locate = Callable[[ExitStack], tuple[IO[bytes], int]]
"""Returns the file that holds the values of an array, open until the stack is closed, and where they begin."""


@dataclass(frozen=True, kw_only=True)
class ArrayHeader:
    """An array in a file, whose values are not read yet."""

    name: str
    """For messages and origins, e.g. 'x_train' or 'X_train.npy'."""
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = UINT8
    stored: np.dtype[Any] = UINT8
    """The type in the file, from which values are converted to `dtype`."""
    is_fortran: bool = False
    """The first axis changes fastest, as in MATLAB's files; else the last one."""
    locate: Locate | None = None
    problem: str = ""
    """Why it cannot be read."""

    @property
    def num_bytes(self) -> int:
        """Of the values in the file."""
        return math.prod(self.shape) * self.stored.itemsize


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """An array whose values are read by position: those of one index of its first axis, or of its last one if it
    `is_fortran`, lie together."""

    header: ArrayHeader
    file: IO[bytes]
    start: int

    def __len__(self) -> int:
        return self.header.shape[-1 if self.header.is_fortran else 0]

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Of an image."""
        return self.header.shape[:-1] if self.header.is_fortran else self.header.shape[1:]

    def items(self, start: int, stop: int) -> npt.NDArray[Any]:
        """(stop - start, *item_shape). Raises ImageError if the file cannot be read."""
        num_bytes = math.prod(self.item_shape) * self.header.stored.itemsize
        content = self._read(start * num_bytes, (stop - start) * num_bytes)
        values = np.frombuffer(content, self.header.stored)
        if self.header.is_fortran:
            values = values.reshape(stop - start, *self.item_shape[::-1])
            values = values.transpose(0, *range(values.ndim - 1, 0, -1))
        else:
            values = values.reshape(stop - start, *self.item_shape)
        return values.astype(self.header.dtype, copy=False)

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """All items, some at a time, each time with the index of the first."""
        step = max(1, BLOCK_BYTES // max(1, math.prod(self.item_shape) * self.header.stored.itemsize))
        for start in range(0, len(self), step):
            yield start, self.items(start, min(start + step, len(self)))

    def load(self) -> npt.NDArray[Any]:
        """The whole array. Raises ImageError if it is too large."""
        if self.header.num_bytes > MAX_LOAD_BYTES:
            raise ImageError(f"has {self.header.num_bytes:,} bytes; expected at most {MAX_LOAD_BYTES:,}")
        values = np.frombuffer(self._read(0, self.header.num_bytes), self.header.stored)
        values = values.reshape(self.header.shape, order="F" if self.header.is_fortran else "C")
        return values.astype(self.header.dtype, copy=False)

    def _read(self, start: int, num_bytes: int) -> bytes:
        content = os.pread(self.file.fileno(), num_bytes, self.start + start)
        if len(content) != num_bytes:
            raise ImageError("cannot be read: the file became shorter")
        return content


def open_array(path: Path, header: ArrayHeader, resources: ExitStack) -> StoredArray:
    """Make the values readable until `resources` is closed. path: for messages. Raises DataError."""
    if header.problem or header.locate is None:
        raise DataError(f"{place(path, header.name)}: {header.problem}")
    with wrap_errors(path, header.name):
        file, start = header.locate(resources)
    return StoredArray(header=header, file=file, start=start)


def place(path: Path, name: str) -> str:
    """An array of the source at `path`, for messages."""
    return f"{path}: {name}" if name and name != path.name else str(path)


@contextmanager
def wrap_errors(path: Path, name: str = "") -> Iterator[None]:
    """Turn ERRORS into DataError."""
    try:
        yield
    except FastcifarError:
        raise
    except ERRORS as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise FastcifarError(f"{tempfile.gettempdir()}: too full to unpack {path} ({error.strerror})") from error
        raise DataError(
            f"{place(path, name)}: cannot be read ({one_line(error, 200)}); expected .npz, .npy or .mat"
        ) from error


def read_npy(path: Path, resources: ExitStack) -> list[ArrayHeader]:
    """The array in an .npy file."""
    with wrap_errors(path):
        file = resources.enter_context(open_regular(path))
        size = os.fstat(file.fileno()).st_size
        return [_parse_header(escape(path.name), file.read(MAX_HEADER), size, lambda start: lambda _: (file, start))]


def read_npz(path: Path, resources: ExitStack) -> list[ArrayHeader]:
    """The arrays in an .npz file."""
    with wrap_errors(path):
        file = resources.enter_context(open_regular(path))
        head = file.read(HEAD_BYTES)
        if not zipfile.is_zipfile(file):
            kind = file_kind(head)
            raise ValueError("it is truncated: a ZIP archive without its end" if "ZIP" in kind else f"it is {kind}")
        require_few_entries(path)
        archive = resources.enter_context(zipfile.ZipFile(file))
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        if len(members) > MAX_ARRAYS:
            raise ValueError(f"it has {len(members):,} arrays; expected at most {MAX_ARRAYS:,}")
        return [_read_member(path, archive, member) for member in members]


def _read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    name = escape(member.filename.removesuffix(".npy"))
    if member.flag_bits & 1:
        return ArrayHeader(name=name, problem="is encrypted; save it without password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others may take gigabytes of memory
        return ArrayHeader(name=name, problem="uses a compression that NumPy does not write")
    with archive.open(member) as content:
        head = content.read(MAX_HEADER)

    def locate(start: int) -> Locate:
        def unpack(resources: ExitStack) -> tuple[IO[bytes], int]:
            spool = spool_file(path, member.file_size, resources)
            with archive.open(member) as content:
                shutil.copyfileobj(content, spool)
            spool.flush()
            if spool.tell() != member.file_size:
                raise ValueError("truncated")
            return spool, start

        return unpack

    return _parse_header(name, head, member.file_size, locate)


def spool_file(path: Path, num_bytes: int, resources: ExitStack) -> IO[bytes]:
    """An unnamed temporary file for `num_bytes`. Raises DataError if that is over half of the free space."""
    if num_bytes > shutil.disk_usage(tempfile.gettempdir()).free // 2:
        raise DataError(
            f"{path}: takes {num_bytes / 2**20:,.0f} MiB unpacked, over half of the free space in "
            f"{tempfile.gettempdir()}; set TMPDIR to a folder with more"
        )
    return resources.enter_context(tempfile.TemporaryFile())


def _parse_header(name: str, head: bytes, size: int, locate: Callable[[int], Locate]) -> ArrayHeader:
    """The header of an .npy file of `size` bytes that begins with `head`."""
    file = io.BytesIO(head)
    try:
        if not head.startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError(f"it is {file_kind(head[:HEAD_BYTES])}; expected a NumPy array")
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"it has version {version[0]}.{version[1]}; expected numbers or text")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which can run code; save numbers, or text with astype(str)")
        if dtype.names is not None or dtype.subdtype is not None or dtype.kind not in "biufUS" or not dtype.itemsize:
            raise ValueError(f"it has dtype {dtype}; expected numbers or text")
        if len(shape) > MAX_AXES or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"it has shape {shape}")
        expected = file.tell() + math.prod(shape) * dtype.itemsize
        if size != expected:
            raise ValueError(f"it has {size:,} bytes; expected {expected:,} by its header: is it truncated?")
    except Exception as error:  # noqa: BLE001 (NumPy's parser raises many types)
        return ArrayHeader(name=name, problem=f"cannot be read ({one_line(error, 200)})")
    return ArrayHeader(
        name=name,
        shape=shape,
        dtype=dtype.newbyteorder("="),
        stored=dtype,
        is_fortran=is_fortran and len(shape) > 1,
        locate=locate(file.tell()),
    )
