"""The user's own pictures, made as large as the images of the data."""

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
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # not those for which Pillow starts programs

DECODABLE = (
    "a JPEG image",
    "a PNG image",
    "a WebP image",
    "a GIF image",
    "a BMP image",
    "a TIFF image",
    "a PPM, PGM or PBM image",
)
"""What those are for `fastcifar.data.image_files`."""


class _Unsupported(Exception):  # noqa: N818 (never leaves this module)
    """A whole picture that is not read, and why."""


def read_picture(path: Path, image_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The picture as (H, W, 3) uint8 RGB: its middle, as wide and high as the images are in proportion, reduced or
    enlarged with Lanczos' filter. It is turned as its camera says; transparent places become white.

    Raises DataError (4) if it is no picture of FORMATS, or too large.
    """
    height, width, _ = image_shape
    if not os.path.exists(path):  # which a name that is too long does not, either
        raise DataError(f"{path}: no such picture")
    if not path.is_file():
        raise DataError(f"{path}: not a picture that can be read (it is no file); expected such as JPEG or PNG")
    PIL.Image.init()  # it knows JPEG, PNG, GIF, BMP and PPM only, before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(path, width, height)
    except Stopped:
        raise
    except Exception as error:  # Pillow raises what its decoders raise
        raise DataError(
            f"{path}: not a picture that can be read ({_reason(path, error)}); expected such as JPEG or PNG"
        ) from error


def _read(path: Path, width: int, height: int) -> npt.NDArray[np.uint8]:
    with PIL.Image.open(path, formats=FORMATS) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise _Unsupported(f"it has {picture.width}x{picture.height} pixels, over {MAX_PIXELS:,}")
        upright, _ = image_files.apply_exif_orientation(picture)
        if upright.mode == "I;16":
            upright = PIL.Image.fromarray((np.asarray(upright) // 257).astype(np.uint8))
        if upright.mode in ("I", "F") or upright.mode.startswith("I;"):
            raise _Unsupported(f"it has mode {upright.mode!r}, not 8 bits a channel")
        if "transparency" in upright.info or "A" in upright.getbands():
            layered = upright.convert("RGBA")
            upright = PIL.Image.alpha_composite(PIL.Image.new("RGBA", layered.size, "white"), layered)
        fitted = PIL.ImageOps.fit(upright.convert("RGB"), (width, height), PIL.Image.Resampling.LANCZOS)
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
