"""Writing a file so that it is there whole or not at all; reading settings that somebody else may have written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastcifar.errors import FastcifarError, UsageError

MAX_DEPTH = 100


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with the path of a temporary file beside `path`; fsync it and rename it into place.

    Raises FastcifarError if the disk is full or the folder cannot be written; what was at `path` is then still there.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            write(partial)
            descriptor = os.open(partial, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise FastcifarError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


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
