"""Writing a file so that it is there whole or not at all; reading settings that somebody else may have written."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fastcifar.errors import FastcifarError, UsageError
from fastcifar.io.file_system import replace, sync
from fastcifar.io.paths import user_path, why_missing
from fastcifar.system.memory import free_memory

MAX_DEPTH = 100
MAX_BITS = 14_000
ALWAYS_READ = 2**28
"""Bytes that are read into memory without asking how much of it is free."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: Path, content: bytes | memoryview, *, earlier: Path | None = None) -> None:
    """Write `content` to `path`, whole or not at all: to a temporary file beside it, fsync, rename.

    What was at `path` is moved to `earlier`, if given. Raises FastcifarError, with how much was needed, if the disk is
    full or the folder cannot be written; what was at `path` is then still there.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            with create_anew(partial) as file:
                file.write(content)
                sync(file, path)
            if earlier is not None and path.exists():
                replace(path, earlier)
            replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            reason += f": it takes {len(content) / 2**20:.1f} MiB{_free(path.parent)}"
        raise FastcifarError(f"{path}: cannot be written ({reason})") from error


def create_anew(path: Path) -> IO[bytes]:
    """A new file to write and read, in the place of what is there: not what a link there names, nor a pipe."""
    path.unlink(missing_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o666), "w+b")


@contextmanager
def open_regular(path: Path) -> Iterator[IO[bytes]]:
    """A file, to read. Raises OSError if it cannot be opened, ValueError if it is none: a pipe is not waited for."""
    with open(open_descriptor(path), "rb") as file:
        yield file


def open_descriptor(path: Path) -> int:
    """A descriptor of a file, to read. Raises OSError if it cannot be opened, ValueError if it is none."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)  # a named pipe does not block
    except BlockingIOError:  # a file server holds a lease on it, and gives it back to who waits
        descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no file")
        os.set_blocking(descriptor, True)  # some file systems answer reads with EAGAIN while they fetch the file
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_whole(path: Path, most: int) -> bytes:
    """The content of a file. Raises OSError or ValueError, see `open_regular`, also if it has over `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > ALWAYS_READ:
            most = min(most, free_memory() // 2)
        if size > most:
            raise ValueError(f"it has {size / 2**20:,.1f} MiB; expected at most {most / 2**20:,.0f}")
        return file.read(size)


def arrays_in(content: bytes, keys: Sequence[str], most: int) -> dict[str, Any]:
    """The arrays of an .npz file, of at most `most` bytes in all. Nothing is unpickled.

    Raises ValueError if one is missing, pickled, or not what its header says.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [archive.getinfo(f"{key}.npy") for key in keys]
            if sum(member.file_size for member in members) > most:
                raise ValueError(f"its arrays have more than {most >> 20} MiB")
            return {key: _array(archive, member) for key, member in zip(keys, members, strict=True)}
    except KeyError as error:
        raise ValueError(f"or of another version: {' '.join(str(error).split())}") from error
    except Exception as error:  # what zipfile, zlib and NumPy's reader of headers raise is all kinds of things
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    import numpy as np

    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in another way than NumPy's")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject or dtype.itemsize == 0:
            raise ValueError(f"{member.filename} holds Python objects, which are not read")
        if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(f"{member.filename} is not as large as its header says")
        return np.frombuffer(bytearray(file.read()), dtype).reshape(shape, order="F" if fortran else "C")


def _free(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return f", {shutil.disk_usage(folder).free / 2**20:.1f} MiB are free"
    return ""


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays as a compressed .npz, whole or not at all."""
    import numpy as np

    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_bytes(path, file.getbuffer())


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a FastcifarError that names `path`."""
    try:
        yield
    except OSError as error:
        raise FastcifarError(f"{error.filename or path}: cannot be written ({error.strerror or error})") from error


def read_settings(
    path: str | os.PathLike[str], kind: str, expected: str, *, most_kib: int, key: str | None = None
) -> dict[str, Any]:
    """The settings in a YAML or JSON file that somebody else may have written; under `key`, if given, are more of them.

    Raises UsageError, which calls the file no `kind` and names what was `expected`.
    """
    try:
        file = user_path(path, kind)
        raw = parse_plain(read_whole(file, most_kib * 2**10).decode("utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it holds no settings" if key is None else f"it has no {key!r}")
        if key is not None and not isinstance(raw.get(key), dict):
            raise ValueError(f"it has no {key!r}")
        return raw
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, OSError):
            reason = str(error.strerror) if file.exists() else why_missing(file)
        raise UsageError(f"{file}: not a {kind} ({reason}); expected {expected}") from error


def parse_plain(text: str) -> object:
    """What YAML or JSON stands for: plain values only. Raises ValueError for all that is neither.

    Aliases are refused, which can stand for more than the memory holds, and deep nesting, which takes the parser long.
    """
    try:
        found = _parsed(text)
        _require_plain(found)
        return found
    except Exception as error:  # what the parsers raise for `!!int ""`, `!!bool x` or 100,000 brackets is all kinds
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _require_plain(found: object) -> None:
    """No dates, sets and bytes, which YAML knows; and no number of over 4,300 digits: Python cannot print it, not even
    to refuse it."""
    left = [found]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            left += value
        elif value is not None and not isinstance(value, (str, int, float)):
            raise ValueError(f"it holds a {type(value).__name__}; expected text, numbers, lists and mappings")
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise ValueError(f"it holds a number of {value.bit_length()} bits")


def _parsed(text: str) -> object:
    import yaml

    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(text, object_pairs_hook=each_once)  # ten times as fast as YAML
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases, which can stand for more than the memory holds")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    nodes = [yaml.compose(text, loader)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            each_once([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return yaml.load(text, loader)


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dictionary, for JSON's `object_pairs_hook`. Raises ValueError if a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found
