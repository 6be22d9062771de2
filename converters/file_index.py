"""Finds the file that a value of a table means: its path, also without suffix, or its name, also without suffix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from fastcifar.data.image_files import EXTENSIONS

_UNUSUAL = re.compile(r"\\|//|(^|/)\.{1,2}(/|$)|^[\s/]|^[A-Za-z]:|[\s/]$")
"""In a path that is absolute, or not in its simplest form."""

MANY, MAX_SCANS = 1_000, 10
"""Files of one name, and how often they are looked through."""


class FileIndex:
    """The files of a folder or archive, found by values of a table. A value that is no path in it, and has no folder,
    means the files of that name in whichever folder."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        """root: of the files, for absolute paths."""
        self._root, self._root_name, self._names, self._files = root, root.absolute().name, files, frozenset(files)
        self._indices: dict[Callable[[str], str], dict[str, str | list[str]]] = {}
        self._prefix, self._num_scans = "", 0

    def find(self, value: str, *, anywhere: bool = True) -> list[str]:
        """The files that a value may mean. Raises ValueError if it leads out of the folder.

        anywhere: also those in other folders than its path says.
        """
        if value in self._files:
            return [value]
        path = self._normalise(value) if _UNUSUAL.search(value) else value
        names = [path]
        if "/" in path:
            names.append(path.removeprefix(f"{self._root_name}/"))  # images/1.png, with images/ as root
            names += [self._prefix + path] if anywhere else []
        for name in names:
            if name in self._files:
                return [name]
            if found := self._look_up(without_suffix, name):
                return found
        if not anywhere:
            return []
        if "/" in path:
            return self._find_prefix(path)
        return self._look_up(name_of, path) or self._look_up(stem_of, path)

    def _normalise(self, value: str) -> str:
        path = PurePosixPath(value.strip().replace("\\", "/"))
        text = path.as_posix()
        if path.is_absolute() or re.match("[A-Za-z]:/", text):
            root = self._root.absolute()
            if not path.is_relative_to(root):
                raise ValueError(f"is an absolute path outside {self._root}; expected a path relative to it")
            text = path.relative_to(root).as_posix()
        if ".." in path.parts:
            raise ValueError(f"leads out of {self._root}; expected a path in it")
        return text

    def _look_up(self, key: Callable[[str], str], value: str) -> list[str]:
        if key not in self._indices:
            self._indices[key] = _group(self._names, key)
        found = self._indices[key].get(value, [])
        return [found] if isinstance(found, str) else found

    def _find_prefix(self, path: str) -> list[str]:
        """The files whose path ends with this one; the folders before it then serve for other values, too."""
        if self._prefix:
            return []
        candidates = self._look_up(name_of, name_of(path)) or self._look_up(stem_of, name_of(path))
        if len(candidates) > MANY:  # e.g. a million files image.png
            self._num_scans += 1
            if self._num_scans > MAX_SCANS:
                return []
        ending = f"/{path}"
        found = [file for file in candidates if file.endswith(ending) or without_suffix(file).endswith(ending)]
        if len(found) == 1:
            self._prefix = found[0][: found[0].rindex(ending) + 1]
        return found


def without_suffix(file: str) -> str:
    """The path of an image without its suffix."""
    return file[: file.rindex(".")] if file.lower().endswith(EXTENSIONS) else file


def name_of(file: str) -> str:
    """The last part of a path."""
    return file[file.rfind("/") + 1 :]


def stem_of(file: str) -> str:
    """The last part of a path without its suffix."""
    return without_suffix(name_of(file))


def _group(files: Iterable[str], key: Callable[[str], str]) -> dict[str, str | list[str]]:
    groups: dict[str, str | list[str]] = {}
    for file in files:
        other = groups.setdefault(key(file), file)
        if isinstance(other, list):
            other.append(file)
        elif other is not file:
            groups[key(file)] = [other, file]
    return groups
