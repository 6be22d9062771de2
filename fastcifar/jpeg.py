"""JPEG images inside a beton: encoded by Pillow, and checked before FFCV, which trusts their size, decodes them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
QUALITY = 90
START_OF_FRAME = b"\xff\xc0"  # baseline; its segment: length (2 bytes), precision, height (2), width (2), components


def encode(image: Bytes, quality: int) -> Bytes:
    """(H, W, 3) uint8 -> (size,) uint8: a baseline JPEG file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "jpeg", quality=quality, subsampling=0)
    return np.frombuffer(out.getvalue(), dtype=np.uint8)


def decode(encoded: Bytes) -> Bytes:
    """(size,) uint8 -> (H, W, 3) uint8. Raises ValueError or OSError where it is no JPEG file of colours."""
    with warnings.catch_warnings(), Image.open(io.BytesIO(encoded.tobytes()), formats=["JPEG"]) as image:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if image.mode != "RGB":
            raise ValueError(f"its colours are {image.mode}, expected RGB")
        return np.asarray(image)


def wrong_header(data: Bytes, offsets: Ints, sizes: Ints, image_shape: tuple[int, int, int]) -> int | None:
    """The first image whose header does not tell `image_shape`; None if all do.

    One program's headers are alike: those that hold a frame of the right size where image 0 has it are not looked at
    any closer, apart from image 0. What comes after the headers is not looked at: see `fastcifar.loaders.ffcv_stream`.
    """
    height, width, _ = image_shape
    frame = START_OF_FRAME + b"\x00\x11\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x03"
    at = _start_of_frame(data[offsets[0] : offsets[0] + sizes[0]].tobytes(), frame)
    suspects: Iterable[int] = range(len(offsets))
    if at >= 0:
        head = data[offsets[0] : offsets[0] + at + len(frame)]
        fitting = sizes > len(head)
        safe = np.where(fitting, offsets, offsets[0])
        same = fitting.copy()
        for i, byte in enumerate(head.tolist()):
            same &= data[safe + i] == byte
        suspects = [0, *np.flatnonzero(~same).tolist()]
    for row in suspects:
        try:
            with Image.open(
                io.BytesIO(data[offsets[row] : offsets[row] + sizes[row]].tobytes()), formats=["JPEG"]
            ) as image:
                if image.size != (width, height) or image.mode != "RGB":
                    return row
        except (OSError, ValueError, SyntaxError):
            return row
    return None


def _start_of_frame(image: bytes, frame: bytes) -> int:
    """Where the frame header of a JPEG file is, from segment to segment; -1 if it is not `frame`, or hard to find."""
    at = 2
    while image[at : at + 1] == b"\xff" and not image.startswith(START_OF_FRAME, at) and at + 4 <= len(image):
        if not 0xC0 <= image[at + 1] <= 0xFE or 0xD0 <= image[at + 1] <= 0xD9:
            return -1  # a marker without a length, which none of the programs that we know writes here
        at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
    return at if image.startswith(frame, at) else -1
