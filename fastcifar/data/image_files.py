"""Image files of any common kind to (H, W, 3) uint8 RGB of one size. Shared by `convert`, `predict` and `explain`."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL.Image import Resampling, Transpose

from fastcifar.data.file_kind import HEAD_BYTES, decode_error_reason
from fastcifar.data.jpeg import MAX_SCANS, START_OF_IMAGE, has_many_scans
from fastcifar.errors import UsageError, one_line
from fastcifar.io.checks import require_choice, require_int, shown

Image = npt.NDArray[np.uint8]
FITS = ("crop", "pad", "stretch")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # none for which Pillow starts programs
FORMAT_NAMES = "JPEG, PNG, WebP, BMP, GIF or TIFF"
_DECODABLE = tuple(f"a {name} image" for name in ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "PPM, PGM or PBM"))
CHANGES = {
    "grey": "grey: converted to RGB",
    "palette": "with a palette: converted to RGB",
    "cmyk": "CMYK: converted to RGB",
    "16-bit": "of 16 bits a channel: scaled to 8",
    "scaled": "with another value of white: scaled to 0..255",
    "transparent": "transparent: drawn on the background",
    "rotated": "rotated or flipped by their EXIF orientation",
    "animated": "of several frames: the first is used",
    "resized": "resized",
}
"""What can happen to the pixels of an image, in the words of a summary after the number of images."""
MAX_PIXELS = 100_000_000
MAX_SIDE = 1_672  # a larger square does not fit into a beton's page
_LARGE_PIXELS = 2**22
_large_image = threading.Lock()
"""Held to decode an image of over _LARGE_PIXELS: each pixel takes up to 16 bytes, on each thread."""
_STORED_16_BITS = re.compile(r"(?!BGR).*;16")
"""Pillow's names of how pixels of 16 bits a channel are stored; BGR;16 has 16 bits a pixel."""
_FEW_BITS = {"L;2": 85, "L;4": 17}
"""Grey of 2 or 4 bits, by Pillow's name, and what Pillow multiplies it with, except for the transparent value."""
_ORIENTATION_TAG = 0x112
_PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 262, 0
_TRANSPOSE = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""The inverse of each EXIF orientation; 1 is upright."""
_SIDEWAYS, _FROM_RIGHT, _FROM_BOTTOM = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
"""EXIF orientations: stored sideways; whose left edge is the right one of the upright image; whose top is its end."""


class ImageError(ValueError):
    """An image that cannot be used, and why."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes one of the dataset."""

    size: tuple[int, int] | None = None
    """(height, width); None: as it is."""
    fit: str = "crop"
    """'crop': resized to cover the size, cropped at the centre; 'pad': resized to fit into it, on the background;
    'stretch'. Resizing uses an antialiased Lanczos filter."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB, under transparent pixels and around padded images."""

    def __post_init__(self) -> None:
        require_choice("fit", self.fit, FITS)
        if self.size is not None:
            object.__setattr__(self, "size", _integers("size", self.size, 2, 1, MAX_SIDE))
        object.__setattr__(self, "background", _integers("background", self.background, 3, 0, 255))


def _integers(name: str, values: object, count: int, low: int, high: int) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) != count:
        raise UsageError(f"{name} is {shown(values)}; expected {count} whole numbers, {low}..{high}")
    return tuple(require_int(name, value, low, high) for value in values)


AS_IT_IS = Preprocessing()


class Decoded(NamedTuple):
    """An image of the dataset."""

    pixels: Image
    """(H, W, 3) uint8."""
    size: tuple[int, int]
    """(height, width) of the upright original."""
    changes: tuple[str, ...]
    """Keys of CHANGES."""


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore Pillow's warnings, e.g. of damaged metadata, in all threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def decode_image(content: bytes, rule: Preprocessing) -> Decoded:
    """The image in a file of one of FORMATS, upright, as RGB.

    Of several frames the first; 16 bits a channel become their high 8; colour profiles are ignored. Raises ImageError.
    """
    if content.startswith(START_OF_IMAGE) and has_many_scans(content):
        raise ImageError(f"has over {MAX_SCANS} scans; save it again")
    try:
        with PIL.Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return _decode(opened, rule)
    except ImageError:
        raise
    except PIL.Image.DecompressionBombError:
        raise ImageError(f"has over {MAX_PIXELS:,} pixels; expected at most that many") from None
    except Exception as error:  # Pillow raises many types for a damaged image
        reason = decode_error_reason(content[:HEAD_BYTES], error, _DECODABLE)
        raise ImageError(f"not a readable image ({reason})") from error


def convert_image(image: PIL.Image.Image, rule: Preprocessing) -> Decoded:
    """An image of Pillow, see `decode_image`. Raises ImageError."""
    try:
        return _decode(image, rule)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many types for a damaged image
        raise ImageError(f"not a readable image ({one_line(error)})") from error


def _decode(image: PIL.Image.Image, rule: Preprocessing) -> Decoded:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"is {height}x{width}; expected at most {MAX_PIXELS:,} pixels")
    if rule.size is None and max(image.size) > MAX_SIDE:
        raise ImageError(f"is {height}x{width}; expected at most {MAX_SIDE} pixels a side: resize it with --size")
    changes = ["animated"] if getattr(image, "is_animated", False) else []  # `n_frames` would read all of them
    has_16_bits = bool(_STORED_16_BITS.match(stored := _stored_mode(image)))
    if stored == "I;12":
        raise ImageError("has 12 bits a channel; expected 8 or 16")
    scaled_to: tuple[float, float] | None = None
    if rule.size is not None and image.format in ("JPEG", "MPO"):
        # libjpeg scales by 1/2, 1/4 or 1/8 while it decodes; twice the size keeps the result of the filter
        draft = image.draft(None, (2 * max(rule.size), 2 * max(rule.size)))
        scaled_to = draft[1][2:] if draft else None  # in parts of a pixel, where the image has whole ones
    num_pixels = width * height if "progressive" in image.info else image.width * image.height
    with _large_image if num_pixels > _LARGE_PIXELS else nullcontext():
        was_transposed = image.format == "TIFF" and _orientation(image) in _TRANSPOSE  # by Pillow, as it loads it
        image.load()  # else `getexif` loads a PNG, and its errors would be ignored
        orientation = _orientation(image)
        if stored in _FEW_BITS and isinstance(image.info.get("transparency"), int):
            image.info["transparency"] *= _FEW_BITS[stored]
        rgb = _to_rgb(image, rule.background, has_16_bits, changes)
        size, extent = (height, width), scaled_to or image.size
        if orientation in _TRANSPOSE or was_transposed:
            changes.append("rotated")
        if orientation in _TRANSPOSE:
            rgb = rgb.transpose(_TRANSPOSE[orientation])
        if orientation in _SIDEWAYS:
            size, extent = size[::-1], extent[::-1]
        if rule.size is not None and size != rule.size:
            changes.append("resized")
            left = rgb.width - extent[0] if orientation in _FROM_RIGHT else 0
            top = rgb.height - extent[1] if orientation in _FROM_BOTTOM else 0
            rgb = _resize(rgb, (left, top, left + extent[0], top + extent[1]), size, rule)
        return Decoded(np.asarray(rgb), size, tuple(changes))


def _stored_mode(image: PIL.Image.Image) -> str:
    """How the file of an image stores pixels, in Pillow's words, e.g. 'RGB;16B'; empty if that is unknown."""
    for *_, arguments in getattr(image, "tile", ()):
        mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        return mode if isinstance(mode, str) else ""
    return ""


def _orientation(image: PIL.Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 (Pillow raises many types for a damaged segment, which is ignored)
        return 1


def _to_rgb(
    image: PIL.Image.Image, background: tuple[int, int, int], has_16_bits: bool, changes: list[str]
) -> PIL.Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        has_16_bits = True
        image = _grey_to_8_bits(image)
    elif image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"):
        raise ImageError(f"has mode {image.mode!r}; expected 8 or 16 bits a channel, grey, RGB or CMYK")
    if has_16_bits:
        changes.append("16-bit")
    if image.mode in ("1", "L", "LA", "La"):
        changes.append("grey")
    elif image.mode in ("P", "PA"):
        changes.append("palette")
    elif image.mode == "CMYK":
        changes.append("cmyk")
    if "transparency" in image.info or "A" in image.getbands() or "a" in image.getbands():
        transparent = image.info.get("transparency")
        if has_16_bits and isinstance(transparent, tuple):  # of 16 bits, where the pixels have 8
            image.info["transparency"] = tuple(value >> 8 for value in transparent)
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            changes.append("transparent")
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, background), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """The high 8 bits of grey of 16 bits, with an alpha channel if one value is transparent."""
    values = np.asarray(image)
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
        values = 65_535 - values  # as Pillow does for 8 bits
    grey = PIL.Image.fromarray((values >> 8).astype(np.uint8))
    if isinstance(transparent := image.info.get("transparency"), int):
        grey.putalpha(PIL.Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _resize(
    image: PIL.Image.Image,
    extent: tuple[float, float, float, float],
    original_size: tuple[int, int],
    rule: Preprocessing,
) -> PIL.Image.Image:
    """extent: (left, top, right, bottom) of what was an image of `original_size`, (height, width)."""
    assert rule.size is not None
    (height, width), (old_height, old_width) = rule.size, original_size
    scale_y, scale_x = height / old_height, width / old_width
    if rule.fit == "stretch":
        return image.resize((width, height), Resampling.LANCZOS, extent)
    if rule.fit == "pad":
        scale = min(scale_y, scale_x)
        inner = max(1, round(old_width * scale)), max(1, round(old_height * scale))
        padded = PIL.Image.new("RGB", (width, height), rule.background)
        inside = image.resize(inner, Resampling.LANCZOS, extent)
        padded.paste(inside, ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return padded
    scale = max(scale_y, scale_x)
    x = (1 - width / scale / old_width) / 2 * (extent[2] - extent[0])
    y = (1 - height / scale / old_height) / 2 * (extent[3] - extent[1])
    left, top, right, bottom = extent
    box = max(left, left + x), max(top, top + y), min(right, right - x), min(bottom, bottom - y)
    return image.resize((width, height), Resampling.LANCZOS, box)
