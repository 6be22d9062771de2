"""Arrays of numbers in MATLAB files of version 5, e.g. SVHN's.

Our own reader: `scipy.io.loadmat` holds everything in memory, and allocates what a hostile file announces. Structs,
cells, objects and functions are not read. Format: "MAT-File Format", MathWorks, 2024.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastcifar.converters.array_files import MAX_ARRAYS, MAX_AXES, ArrayHeader, spool_file, wrap_errors
from fastcifar.errors import escape
from fastcifar.io.reading import open_regular

HEADER_BYTES = 128
MATRIX, COMPRESSED = 14, 15
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
OTHER_CLASSES = {
    1: "a cell array",
    2: "a struct",
    3: "an object",
    4: "text",
    5: "sparse",
    16: "a function",
    17: "an object",
}
LOGICAL, COMPLEX = 0x200, 0x800
CHUNK = 2**16
MAX_NAME = 1_024


def read_mat(path: Path, resources: ExitStack) -> list[ArrayHeader]:
    """The variables in a file. Raises DataError if it is damaged, or of another version."""
    with wrap_errors(path):
        file = resources.enter_context(open_regular(path))
        head = file.read(HEADER_BYTES)
        if head.startswith((b"MATLAB 7.3", b"\x89HDF\r\n\x1a\n")):
            raise ValueError("it has version 7.3 (HDF5), which is not supported; save it in MATLAB with -v7")
        order = {b"\0\1IM": "<", b"\1\0MI": ">"}.get(head[124:128])
        if order is None:
            raise ValueError("it is not a MATLAB file of version 5; save it in MATLAB with -v7")
        return _read_variables(path, file, order)


def _read_variables(path: Path, file: IO[bytes], order: str) -> list[ArrayHeader]:
    size, position = os.fstat(file.fileno()).st_size, HEADER_BYTES
    variables: list[ArrayHeader] = []
    while position < size:
        kind, num_bytes = struct.unpack(f"{order}II", os.pread(file.fileno(), 8, position).ljust(8, b"\0"))
        start, position = position + 8, position + 8 + num_bytes
        if position > size:
            raise ValueError("truncated")
        if len(variables) == MAX_ARRAYS:
            raise ValueError(f"it has over {MAX_ARRAYS:,} variables")
        if kind == MATRIX:
            head = os.pread(file.fileno(), min(num_bytes, CHUNK), start)
            variables.append(_parse(head, num_bytes, order, _in_file(file, start)))
        elif kind == COMPRESSED:
            content = os.pread(file.fileno(), min(num_bytes, CHUNK), start)
            head = zlib.decompressobj().decompress(content, CHUNK)
            inner, length = struct.unpack(f"{order}II", head[:8].ljust(8, b"\0"))
            if inner != MATRIX:
                raise ValueError(f"it has a compressed element of type {inner}; expected a matrix")
            span = (start, num_bytes)
            variables.append(_parse(head[8:], length, order, _unpacker(path, file, span, 8)))
        else:
            raise ValueError(f"it has an element of type {kind}; expected matrices")
    return variables


Locator = Callable[[int, int], Any]
"""(bytes before the values, bytes of the values) -> `ArrayHeader.locate`."""


def _in_file(file: IO[bytes], start: int) -> Locator:
    return lambda used, num_bytes: lambda resources: (file, start + used)


def _unpacker(path: Path, file: IO[bytes], span: tuple[int, int], before: int) -> Locator:
    def locator(used: int, num_bytes: int) -> Any:
        def unpack(resources: ExitStack) -> tuple[IO[bytes], int]:
            spool = spool_file(path, before + used + num_bytes, resources)
            _decompress(file, span, spool, before + used + num_bytes)
            return spool, before + used

        return unpack

    return locator


def _decompress(file: IO[bytes], span: tuple[int, int], out: IO[bytes], num_bytes: int) -> None:
    """Unpack to `out`, to the end, where the checksum is verified; at most `num_bytes` and the padding after them."""
    start, end = span[0], span[0] + span[1]
    decoder, total, pending = zlib.decompressobj(), 0, b""
    while not decoder.eof:
        if not pending:
            pending = os.pread(file.fileno(), min(CHUNK, end - start), start)
            start += len(pending)
        unpacked = decoder.decompress(pending, 16 * CHUNK)
        if not pending and not unpacked:
            break
        pending = decoder.unconsumed_tail
        total += len(unpacked)
        if total > num_bytes + 8:
            raise ValueError("it is longer than its header says")
        out.write(unpacked)
    out.flush()
    if not decoder.eof or total < num_bytes:
        raise ValueError("truncated")


def _parse(head: bytes, length: int, order: str, locator: Locator) -> ArrayHeader:
    """The variable whose matrix of `length` bytes begins with `head`."""
    (_, flags), used = _element(head, 0, order, 8)
    (bits,) = struct.unpack(f"{order}I", flags[:4])
    (_, dims), used = _element(head, used, order, 4 * MAX_AXES)
    shape = struct.unpack(f"{order}{len(dims) // 4}i", dims)
    (_, name_bytes), used = _element(head, used, order, MAX_NAME)
    name, number = escape(name_bytes.decode("latin-1")), bits & 0xFF
    if number not in CLASSES:
        what = OTHER_CLASSES.get(number, f"of class {number}")
        return ArrayHeader(name=name, problem=f"is {what}, which is not read; save numbers")
    if bits & COMPLEX:
        return ArrayHeader(name=name, problem="has complex numbers; expected real ones")
    kind, num_bytes, start = _tag(head, used, order)
    if kind not in STORED or not all(side >= 0 for side in shape):
        raise ValueError(f"{name} has values of type {kind} and shape {shape}")
    stored = np.dtype(f"{order}{STORED[kind]}")
    if num_bytes != math.prod(shape) * stored.itemsize or start + num_bytes > length:
        raise ValueError(f"{name} has {num_bytes:,} bytes of values, which does not fit its shape {shape}")
    return ArrayHeader(
        name=name,
        shape=shape,
        dtype=np.dtype(bool) if bits & LOGICAL else np.dtype(CLASSES[number]),
        stored=stored,
        is_fortran=True,
        locate=locator(start, num_bytes),
    )


def _tag(head: bytes, position: int, order: str) -> tuple[int, int, int]:
    """Type, number of bytes, and start of an element at `position`."""
    if position + 8 > len(head):
        raise ValueError("truncated")
    kind, num_bytes = struct.unpack_from(f"{order}II", head, position)
    if kind >> 16:  # up to four bytes, in the tag itself
        return kind & 0xFFFF, kind >> 16, position + 4
    return kind, num_bytes, position + 8


def _element(head: bytes, position: int, order: str, max_bytes: int) -> tuple[tuple[int, bytes], int]:
    """Type and content of a small element, and where the next one begins."""
    kind, num_bytes, start = _tag(head, position, order)
    if num_bytes > max_bytes or start + num_bytes > len(head):
        raise ValueError(f"its header has an element of {num_bytes:,} bytes")
    end = position + 8 if start == position + 4 else start + -(-num_bytes // 8) * 8
    return (kind, head[start : start + num_bytes]), end
