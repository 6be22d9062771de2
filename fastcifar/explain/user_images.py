"""The user's own images: files, folders, and patterns that no shell has expanded; resized to the images of the data."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastcifar.data.image_files import ImageError, Preprocessing, decode_image, quiet_pillow
from fastcifar.errors import DataError, UsageError, one_line
from fastcifar.io.paths import user_path, why_missing
from fastcifar.io.reading import read_bytes

log = logging.getLogger(__name__)
MAX_IMAGES = 1_000
"""Each gets a sheet, which takes about a second."""
MAX_FILE_BYTES = 2**28


def read_user_images(
    patterns: Sequence[str | os.PathLike[str]], image_shape: tuple[int, int, int]
) -> tuple[npt.NDArray[np.uint8], list[Path]]:
    """The images that `patterns` name, (N, H, W, 3) uint8, see `read_user_image`, and the path of each.

    A folder stands for all images in it and its subfolders, sorted by path, a pattern such as 'cats/*.jpg' for what it
    matches; other files there are skipped, with a warning that counts them.
    Raises DataError (4) if a file is not an image or there is none; UsageError (2) for more than MAX_IMAGES.
    """
    images: list[npt.NDArray[np.uint8]] = []
    paths: list[Path] = []
    for pattern in (user_path(pattern, "image") for pattern in patterns):
        files, is_search = _files(pattern)
        skipped: list[DataError] = []
        for file in files:
            if len(images) == MAX_IMAGES:
                raise UsageError(f"{pattern}: over {MAX_IMAGES:,} images; expected fewer at a time")
            try:
                images.append(read_user_image(file, image_shape))
                paths.append(file)
            except DataError as error:
                if not is_search:
                    raise
                skipped.append(error)
        if is_search and len(skipped) == len(files):
            raise DataError(f"{pattern}: no image among {len(files):,} files; expected e.g. JPEG or PNG")
        if skipped:
            log.warning("%s: skipped %d files that are not images; the first: %s", pattern, len(skipped), skipped[0])
    return np.stack(images), paths


def _files(pattern: Path) -> tuple[list[Path], bool]:
    """The files that `pattern` stands for, and whether they were searched for: then some may not be images."""
    if pattern.is_dir():
        files = (Path(base, name) for base, _, names in os.walk(pattern) for name in names)
        return sorted(file for file in files if "/." not in f"/{file.relative_to(pattern)}"), True  # none is hidden
    if not os.path.lexists(pattern) and glob.has_magic(str(pattern)):
        matches = sorted(map(Path, glob.glob(str(pattern), recursive=True)))
        if not matches:
            raise DataError(f"{pattern}: no file matches")
        return [file for match in matches for file in (_files(match)[0] if match.is_dir() else [match])], True
    if not os.path.exists(pattern):
        raise DataError(f"{pattern}: {why_missing(pattern, 'no such image')}")
    return [pattern], False


def read_user_image(path: Path, image_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The image as (H, W, 3) uint8 RGB, see `decode_image`: cropped at its centre and resized; transparent pixels
    become white.

    Raises DataError (4) if it is not an image.
    """
    height, width, _ = image_shape
    try:
        with quiet_pillow():
            return decode_image(read_bytes(path, MAX_FILE_BYTES), Preprocessing(size=(height, width))).pixels
    except (OSError, ValueError) as error:
        reason = str(error) if isinstance(error, ImageError) else f"not a readable image ({one_line(error)})"
        raise DataError(f"{path}: {reason}; use another image, e.g. JPEG or PNG") from error
