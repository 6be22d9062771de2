"""The user's own images, resized to the images of the data."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps

from fastcifar.data import image_files
from fastcifar.errors import DataError, Stopped, one_line
from fastcifar.io.reading import open_regular

MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # none for which Pillow starts programs

DECODABLE = (
    "a JPEG image",
    "a PNG image",
    "a WebP image",
    "a GIF image",
    "a BMP image",
    "a TIFF image",
    "a PPM, PGM or PBM image",
)
"""FORMATS in the words of `fastcifar.data.image_files`."""


class _Unsupported(Exception):  # noqa: N818 (never leaves this module)
    """An intact image that is not supported, and why."""


def read_user_image(path: Path, image_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The image as (H, W, 3) uint8 RGB: cropped at its centre to the proportions of `image_shape` and resized with a
    Lanczos filter. Its EXIF orientation is applied; transparent pixels become white.

    Raises DataError (4) if it is not an image in one of FORMATS, or too large.
    """
    height, width, _ = image_shape
    if not os.path.exists(path):  # also if its name is too long
        raise DataError(f"{path}: no such image")
    if not path.is_file():
        raise DataError(f"{path}: not a readable image (not a file); expected e.g. JPEG or PNG")
    PIL.Image.init()  # without it Pillow knows JPEG, PNG, GIF, BMP and PPM only
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(path, width, height)
    except Stopped:
        raise
    except Exception as error:  # Pillow's decoders raise many types
        raise DataError(f"{path}: not a readable image ({_reason(path, error)}); expected e.g. JPEG or PNG") from error


def _read(path: Path, width: int, height: int) -> npt.NDArray[np.uint8]:
    with PIL.Image.open(path, formats=FORMATS) as file:
        if file.width * file.height > MAX_PIXELS:
            raise _Unsupported(f"it has {file.width}x{file.height} pixels, over {MAX_PIXELS:,}")
        image, _ = image_files.apply_exif_orientation(file)
        if image.mode == "I;16":
            image = PIL.Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise _Unsupported(f"it has mode {image.mode!r}, not 8 bits per channel")
        if "transparency" in image.info or "A" in image.getbands():
            rgba = image.convert("RGBA")
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba)
        fitted = PIL.ImageOps.fit(image.convert("RGB"), (width, height), PIL.Image.Resampling.LANCZOS)
        return np.asarray(fitted)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, _Unsupported):
        return str(error)
    try:
        with open_regular(path) as file:
            head = file.read(image_files.HEAD_BYTES)
    except (OSError, ValueError) as unreadable:
        return one_line(unreadable)
    return image_files.decode_error_reason(head, error, DECODABLE)
