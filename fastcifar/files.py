"""Writing a file so that it is there whole or not at all; reading settings that somebody else may have written."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastcifar.errors import FastcifarError, UsageError

MAX_DEPTH = 100
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: Path, content: bytes | memoryview, *, earlier: Path | None = None) -> None:
    """Write `content` to `path`, whole or not at all: to a temporary file beside it, fsync, rename.

    What was at `path` is moved to `earlier`, if given. Raises FastcifarError, with how much was needed, if the disk is
    full or the folder cannot be written; what was at `path` is then still there.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if earlier is not None and path.exists():
                os.replace(path, earlier)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            reason += f": it takes {len(content) / 2**20:.1f} MiB{_free(path.parent)}"
        raise FastcifarError(f"{path}: cannot be written ({reason})") from error


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
    import yaml

    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is no file")
        if os.path.getsize(path) > most_kib * 2**10:
            raise ValueError(f"it has over {most_kib} KiB")
        raw = parse_plain(Path(path).read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it holds no settings" if key is None else f"it has no {key!r}")
        if key is not None and not isinstance(raw.get(key), dict):
            raise ValueError(f"it has no {key!r}")
        return raw
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UsageError(f"{os.fspath(path)}: not a {kind} ({reason}); expected {expected}") from error


def parse_plain(text: str) -> object:
    """What YAML or JSON stands for: plain values only. Raises ValueError, RecursionError or YAMLError.

    Aliases are refused, which can stand for more than the memory holds, and deep nesting, which takes the parser long.
    """
    import yaml

    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(text, object_pairs_hook=_each_once)  # ten times as fast as YAML
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
            _each_once([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return yaml.load(text, loader)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found
