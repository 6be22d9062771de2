"""Paths that users give, and commands that messages show: both directions between text and files."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastcifar.errors import FastcifarError, UsageError

SPLIT_FILES = tuple(f"{split}.beton{suffix}" for split in ("train", "test") for suffix in ("", ".json"))
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # at least two letters: one is a drive


def user_path(value: Any, name: str = "path") -> Path:
    """A path from text or os.PathLike, with `~` and `~user` expanded. It need not exist.

    name: of the setting, for the message. Raises UsageError if it is empty, a URL, of another type, or names an unknown
    user.
    """
    try:
        text = os.fsdecode(value)
    except TypeError:
        raise UsageError(f"{name} is {value!r}; expected a path") from None
    if not text.strip() or "\0" in text:
        raise UsageError(f"{name} is {text!r}; expected a path")
    if (url := URL.match(text)) and not os.path.lexists(url[0].rstrip("/")):
        hint = f": {'/' + unquote(text[url.end() :])}" if url[1].lower() == "file" else "; download the file first"
        raise UsageError(f"{name} is {text!r}, a URL; expected a path on this machine{hint}")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~") and not os.path.lexists(expanded.split("/")[0]):
        raise UsageError(f"{name} is {text!r}; no such user; expected a path, e.g. ./{text}")
    return Path(expanded)


def data_folder(value: Any, name: str = "data_dir") -> Path:
    """The folder of train.beton and test.beton, from its path or that of one of them; raises as `user_path`."""
    path = user_path(value, name)
    if path.name in SPLIT_FILES and not path.is_dir():
        return path.parent
    if path.suffix == ".beton" and not path.is_dir():
        raise UsageError(f"{name} is {str(path)!r}; expected the folder of train.beton and test.beton")
    return path


def why_missing(path: Path, default: str = "no such file") -> str:
    """Why `path` does not exist: `default`, or what is wrong with a link or folder in it."""
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a loop of links"
        for part in (path, *path.parents):
            if os.path.islink(part) and not os.path.exists(part):
                return f"{'' if part == path else f'{part} is '}a link to {os.readlink(part)}, which does not exist"
        if error.errno == errno.ENOTDIR:
            return "inside a file, not a folder"
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            return f"cannot be opened ({error.strerror})"
    return default


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents where they are missing. Raises FastcifarError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        default = f"cannot be created ({error.strerror or error})"
        reason = "a file, not a folder" if folder.is_file() else why_missing(folder, default)
        raise FastcifarError(f"{folder}: {reason}; expected a folder, or a path where one can be created") from error


def require_file_path(path: Path, kind: str, example: str) -> None:
    """Raise UsageError where a file cannot be put: at a folder, a device or a pipe. kind, example: for the message."""
    if path.is_dir():
        raise UsageError(f"{path}: a folder; expected the name of a {kind} file, e.g. {path / example}")
    # /dev/stdout can be a link to a file: as root, the link would be replaced
    if (path.exists() and not path.is_file()) or os.path.realpath(path.parent) == "/dev":
        raise UsageError(f"{path}: a device or pipe; expected the name of a {kind} file, e.g. {example}")


def link_or_copy(source: Path, target: Path) -> None:
    """Link `target` to a file or folder; copy it where the file system has no links, e.g. FAT."""
    try:
        os.symlink(source, target)
    except OSError:
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)


def command_line(*arguments: str | os.PathLike[str]) -> str:
    """The arguments as a shell command on one line.

    A path (os.PathLike) that begins like an option or a home folder is prefixed with './'. Characters that are not
    printable, e.g. a line break, are written as $'\\n', which bash, zsh and ksh understand.
    """
    return " ".join(map(_quoted, arguments))


def _quoted(argument: str | os.PathLike[str]) -> str:
    text = os.fspath(argument)
    if not isinstance(argument, str) and text.startswith(("-", "~")):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    shown = (
        "\\" + c if c in "\\'" else c if c.isprintable() else "".join(f"\\{byte:03o}" for byte in os.fsencode(c))
        for c in text
    )
    return f"$'{''.join(shown)}'"


def numbered(name: str) -> Iterator[str]:
    """`name`, `name-2`, `name-3`, …: for what may exist already."""
    return (f"{name}-{number}" if number > 1 else name for number in count(1))
