"""JPEG images in a beton: encoded by Pillow; their headers are checked, because FFCV trusts the size in them."""

from __future__ import annotations

import io
import re

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]
MAX_SCANS = 100
"""A progressive file has about ten, and each takes as long as the whole image."""
START_OF_IMAGE = b"\xff\xd8"
START_OF_SCAN = b"\xff\xda"
END_OF_IMAGE = b"\xff\xd9"
START_OF_FRAME = (0xC0, 0xC1, 0xC2)
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # with a length, or the end; libjpeg skips what is between them
SEGMENTS = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)  # tables, restart interval, application data, comments


def encode(image: Bytes, quality: int) -> Bytes:
    """(H, W, 3) uint8 -> (size,) uint8: a baseline JPEG file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "jpeg", quality=quality, subsampling=0)
    return np.frombuffer(out.getvalue(), dtype=np.uint8)


def decode(encoded: Bytes) -> Bytes:
    """(size,) uint8 -> (H, W, 3) uint8. Raises ValueError or OSError unless it is an RGB JPEG file."""
    with Image.open(io.BytesIO(encoded.tobytes()), formats=["JPEG"]) as image:
        if image.mode != "RGB":
            raise ValueError(f"its mode is {image.mode}; expected RGB")
        return np.asarray(image)


def read_shape(encoded: bytes) -> tuple[int, int, int] | None:
    """(H, W, channels) in the header of a baseline or progressive JPEG file of 8 bits; None for anything else."""
    at = 2 if encoded.startswith(START_OF_IMAGE) else len(encoded)
    while at + 10 <= len(encoded) and encoded[at] == 0xFF:
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4], "big")
        if marker in START_OF_FRAME:  # length (2 bytes), precision (1), height (2), width (2), channels (1)
            height, width = (int.from_bytes(encoded[i : i + 2], "big") for i in (at + 5, at + 7))
            return (height, width, encoded[at + 9]) if encoded[at + 4] == 8 else None
        if marker not in SEGMENTS:  # it has no length: a parser that reads one skips the true header
            return None
        at += 2 + length
    return None


def has_many_scans(encoded: bytes) -> bool:
    """Whether there are over MAX_SCANS up to the end of the image; other data may follow it, e.g. a video."""
    if encoded.count(START_OF_SCAN) <= MAX_SCANS:
        return False
    num_scans, at = 0, len(START_OF_IMAGE)
    while (found := _MARKER.search(encoded, at)) and found[0] != END_OF_IMAGE:
        num_scans += found[0] == START_OF_SCAN
        at = found.end() + max(int.from_bytes(encoded[found.end() : found.end() + 2], "big"), 2)
    return num_scans > MAX_SCANS
