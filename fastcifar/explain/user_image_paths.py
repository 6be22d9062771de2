"""Which pictures a user means: files, folders, and patterns that no shell has expanded."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.errors import DataError, UsageError
from fastcifar.explain.user_images import read_picture
from fastcifar.io.paths import user_path, why_missing

log = logging.getLogger(__name__)
MAX_PICTURES = 1_000
"""Each gets a sheet of its own, which takes about a second."""


def read_pictures(
    given: Sequence[str | os.PathLike[str]], image_shape: tuple[int, int, int]
) -> tuple[npt.NDArray[np.uint8], list[Path]]:
    """The pictures that `given` names, (N, H, W, 3) uint8, see `read_picture`, and the path of each.

    A folder stands for all pictures in it and in the folders below, in the order of their paths; what is no picture
    there is passed over, with a warning that counts it. A pattern such as 'cats/*.jpg' stands for what it matches.
    Raises DataError (4) if a file is no picture or there is none; UsageError (2) for more than MAX_PICTURES.
    """
    images: list[npt.NDArray[np.uint8]] = []
    paths: list[Path] = []
    for asked in map(_path, given):
        files, searched = _files(asked)
        skipped: list[DataError] = []
        for file in files:
            if len(images) == MAX_PICTURES:
                raise UsageError(f"{asked}: over {MAX_PICTURES:,} pictures; expected fewer at a time")
            try:
                images.append(read_picture(file, image_shape))
                paths.append(file)
            except DataError as error:
                if not searched:
                    raise
                skipped.append(error)
        if searched and len(skipped) == len(files):
            raise DataError(f"{asked}: no picture there, {len(files):,} other files; expected such as JPEG or PNG")
        if skipped:
            log.warning(
                "%s: passed over %d files that are not pictures; the first: %s", asked, len(skipped), skipped[0]
            )
    return np.stack(images), paths


def _path(value: Any) -> Path:
    return user_path(value, "image")


def _files(asked: Path) -> tuple[list[Path], bool]:
    """The files that `asked` stands for, and whether they were searched for: then some may be no pictures."""
    if asked.is_dir():
        found = (Path(base, name) for base, _, names in os.walk(asked) for name in names)
        return sorted(file for file in found if not _hidden(file.relative_to(asked))), True
    if not os.path.lexists(asked) and glob.has_magic(str(asked)):
        matches = sorted(map(Path, glob.glob(str(asked), recursive=True)))
        if not matches:
            raise DataError(f"{asked}: no file matches")
        return [file for match in matches for file in (_files(match)[0] if match.is_dir() else [match])], True
    if not os.path.exists(asked):
        raise DataError(f"{asked}: {why_missing(asked, 'no such picture')}")
    return [asked], False


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
