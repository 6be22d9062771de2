"""Bounded reads of files of unknown origin: regular files only, at most so many bytes, plain values only."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from fastcifar.errors import UsageError, one_line
from fastcifar.io.paths import user_path, why_missing
from fastcifar.system.memory import free_memory

MAX_DEPTH = 100
CHECK_MEMORY_ABOVE = 2**28
"""Files and arrays of more bytes are read only if they take at most half of the free memory."""
MAX_ARRAYS = 2**36
"""Bytes of the arrays of a file; free memory is usually the tighter limit."""


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading. Raises OSError if that fails, ValueError for pipes, devices and folders."""
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: that would wait for the writer of a pipe
        raise ValueError("not a regular file")
    return path.open("rb")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file. Raises as `open_regular`, and ValueError if it has more than `max_bytes`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        _require_size("it has", size, max_bytes)
        return file.read(size)


def _require_size(what: str, size: int, max_bytes: int) -> None:
    if size > CHECK_MEMORY_ABOVE:
        max_bytes = min(max_bytes, free_memory() // 2)
    if size > max_bytes:
        raise ValueError(f"{what} {size / 2**20:,.1f} MiB; expected at most {max_bytes / 2**20:,.0f}")


def load_arrays(content: bytes, keys: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """The arrays `keys` of an .npz file, and those of `optional` that it has, of at most MAX_ARRAYS in all, without
    pickle.

    Raises ValueError if they take over half of the free memory, or if one is missing, holds Python objects, or does not
    fit its header.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            keys = [*keys, *(key for key in optional if f"{key}.npy" in archive.namelist())]
            members = [archive.getinfo(f"{key}.npy") for key in keys]
            _require_size("its arrays have", sum(member.file_size for member in members), MAX_ARRAYS)
            if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
                raise ValueError("it uses a compression that NumPy does not write")  # and that may need gigabytes
            files = zip(keys, map(archive.open, members), strict=True)
            return {key: np.lib.format.read_array(file, allow_pickle=False) for key, file in files}
    except KeyError as error:
        raise ValueError(f"or of another version: {one_line(error)}") from error
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise many types
        raise ValueError(one_line(error)) from error


def read_mapping(path: Path, max_bytes: int) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises OSError, or ValueError for anything else."""
    mapping = parse_yaml(read_bytes(path, max_bytes).decode("utf-8"))
    if not isinstance(mapping, dict) or not all(isinstance(key, str) for key in mapping):
        raise ValueError("it holds no settings")
    return mapping


def read_settings(
    path: str | os.PathLike[str], kind: str, expected: str, *, max_bytes: int, key: str | None = None
) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; with `key`, that entry must be a mapping, too.

    Raises UsageError, which says that the file is not a `kind`, and names what was `expected`.
    """
    file = user_path(path, kind)
    try:
        settings = read_mapping(file, max_bytes)
        if key is not None and not isinstance(settings.get(key), dict):
            raise ValueError(f"it has no {key!r}")
        return settings
    except (OSError, ValueError) as error:
        reason = one_line(error)
        if isinstance(error, OSError):
            reason = str(error.strerror) if file.exists() else why_missing(file)
        raise UsageError(f"{file}: not a {kind} ({reason}); expected {expected}") from error


def parse_yaml(text: str) -> object:
    """The plain values (text, numbers, lists, mappings) of a YAML or JSON text. Raises ValueError for anything else.

    Aliases are refused, which can expand beyond the memory, and deep nesting, which is slow to parse.
    """
    try:
        value = _parse(text)
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError("it has dates, sets or bytes; expected text, numbers, lists and mappings") from None
        return value
    except Exception as error:  # the parsers raise many types, e.g. for `!!int ""`, `!!bool x` or 100,000 brackets
        raise ValueError(one_line(error)) from error


def _parse(text: str) -> object:
    import yaml

    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(text, object_pairs_hook=reject_duplicate_keys)  # ten times as fast as YAML
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases, which are not supported")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    nodes = [yaml.compose(text, loader)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            reject_duplicate_keys([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return yaml.load(text, loader)


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dictionary, for JSON's `object_pairs_hook`. Raises ValueError for a duplicate key."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return mapping
