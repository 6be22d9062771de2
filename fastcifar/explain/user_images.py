"""The user's own images: files, folders, and patterns that no shell has expanded; resized to the images of the data."""

from __future__ import annotations

import glob
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps

from fastcifar.data import image_files
from fastcifar.errors import DataError, UsageError, one_line
from fastcifar.io.paths import user_path, why_missing
from fastcifar.io.reading import open_regular

log = logging.getLogger(__name__)
MAX_IMAGES = 1_000
"""Each gets a sheet, which takes about a second."""
MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # none for which Pillow starts programs

DECODABLE = tuple(f"a {name} image" for name in ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "PPM, PGM or PBM"))
"""FORMATS in the words of `fastcifar.data.image_files`."""


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
    """The image as (H, W, 3) uint8 RGB: cropped at its centre to the proportions of `image_shape` and resized with a
    Lanczos filter. Its EXIF orientation is applied; transparent pixels become white.

    Raises DataError (4) if it is not an image in one of FORMATS, or too large.
    """
    height, width, _ = image_shape
    PIL.Image.init()  # without it Pillow knows JPEG, PNG, GIF, BMP and PPM only
    head = None
    try:
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = file.read(image_files.HEAD_BYTES)
            return _decode(file, width, height)
    except Exception as error:  # Pillow's decoders raise many types
        if head is None or isinstance(error, DataError):
            reason = one_line(error)
        else:
            reason = image_files.decode_error_reason(head, error, DECODABLE)
        raise DataError(f"{path}: not a readable image ({reason}); expected e.g. JPEG or PNG") from error


def _decode(content: IO[bytes], width: int, height: int) -> npt.NDArray[np.uint8]:
    """Raises DataError for an intact image that is not supported."""
    content.seek(0)
    with PIL.Image.open(content, formats=FORMATS) as file:
        if file.width * file.height > MAX_PIXELS:
            raise DataError(f"it has {file.width}x{file.height} pixels, over {MAX_PIXELS:,}")
        image, _ = image_files.apply_exif_orientation(file)
        if image.mode == "I;16":
            image = PIL.Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise DataError(f"it has mode {image.mode!r}, not 8 bits per channel")
        if "transparency" in image.info or "A" in image.getbands():
            rgba = image.convert("RGBA")
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba)
        fitted = PIL.ImageOps.fit(image.convert("RGB"), (width, height), PIL.Image.Resampling.LANCZOS)
        return np.asarray(fitted)
