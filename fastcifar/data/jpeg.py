"""JPEG images inside a beton: encoded by Pillow, and checked before FFCV, which trusts their size, decodes them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fastcifar.data.image_files import HEAD_BYTES, why_unreadable

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
    content = encoded.tobytes()
    with warnings.catch_warnings(), _opened(content) as image:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if image.mode != "RGB":
            raise ValueError(f"its colours are {image.mode}, expected RGB")
        return np.asarray(image)


def _opened(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=["JPEG"])
    except UnidentifiedImageError as error:
        raise ValueError(why_unreadable(content[:HEAD_BYTES], error, ("a JPEG image",))) from error


def wrong_header(
    bytes_at: Callable[[int, int], bytes], offsets: Ints, sizes: Ints, image_shape: tuple[int, int, int]
) -> int | None:
    """The first image whose header does not tell `image_shape`; None if all do. `bytes_at` reads from the file: from
    where, and how many.

    One program's headers are alike: those that hold a frame of the right size where image 0 has it are not looked at
    any closer, apart from image 0. What comes after the headers is not looked at: see `fastcifar.loaders.ffcv_loader`.
    """
    height, width, _ = image_shape
    frame = START_OF_FRAME + b"\x00\x11\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x03"
    first = bytes_at(int(offsets[0]), int(sizes[0]))
    at = _start_of_frame(first, frame)
    head = first[: at + len(frame)] if at >= 0 else None
    for row, (start, size) in enumerate(zip(offsets.tolist(), sizes.tolist(), strict=True)):
        if row and head is not None and size > len(head) and bytes_at(start, len(head)) == head:
            continue
        if _told_by_header(bytes_at(start, size)) != ((width, height), "RGB"):
            return row
    return None


def _told_by_header(encoded: bytes) -> tuple[tuple[int, int], str] | None:
    """Width, height and mode; None if Pillow cannot read the header, whatever it raises."""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(encoded), formats=["JPEG"]) as image:
        return image.size, image.mode
    return None


def _start_of_frame(image: bytes, frame: bytes) -> int:
    """Where the frame header of a JPEG file is, from segment to segment; -1 if it is not `frame`, or hard to find."""
    at = 2
    while image[at : at + 1] == b"\xff" and not image.startswith(START_OF_FRAME, at) and at + 4 <= len(image):
        if not 0xC0 <= image[at + 1] <= 0xFE or 0xD0 <= image[at + 1] <= 0xD9:
            return -1  # a marker without a length, which none of the programs that we know writes here
        at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
    return at if image.startswith(frame, at) else -1
