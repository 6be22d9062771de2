"""JPEG images in a beton: encoded by Pillow; their headers are checked, because FFCV trusts the size in them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fastcifar.data.image_files import HEAD_BYTES, decode_error_reason

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
START_OF_FRAME = b"\xff\xc0"  # baseline; its segment: length (2 bytes), precision, height (2), width (2), components


def encode(image: Bytes, quality: int) -> Bytes:
    """(H, W, 3) uint8 -> (size,) uint8: a baseline JPEG file."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "jpeg", quality=quality, subsampling=0)
    return np.frombuffer(out.getvalue(), dtype=np.uint8)


def decode(encoded: Bytes) -> Bytes:
    """(size,) uint8 -> (H, W, 3) uint8. Raises ValueError or OSError unless it is an RGB JPEG file."""
    content = encoded.tobytes()
    with warnings.catch_warnings(), _open(content) as image:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if image.mode != "RGB":
            raise ValueError(f"its mode is {image.mode}; expected RGB")
        return np.asarray(image)


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=["JPEG"])
    except UnidentifiedImageError as error:
        raise ValueError(decode_error_reason(content[:HEAD_BYTES], error, ("a JPEG image",))) from error


def find_wrong_header(
    read: Callable[[int, int], bytes], offsets: Ints, sizes: Ints, image_shape: tuple[int, int, int]
) -> int | None:
    """The first image whose header does not say `image_shape`; None if all do. read(start, size) reads the file.

    Headers of one program are alike: where one equals that of image 0 up to a frame of the right size, it is not
    parsed.
    What follows the headers is not checked here: see `fastcifar.loaders.ffcv_loader`.
    """
    height, width, _ = image_shape
    frame = START_OF_FRAME + b"\x00\x11\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x03"
    first = read(int(offsets[0]), int(sizes[0]))
    frame_start = _find_frame(first, frame)
    header = first[: frame_start + len(frame)] if frame_start >= 0 else None
    for index, (start, size) in enumerate(zip(offsets.tolist(), sizes.tolist(), strict=True)):
        if index and header is not None and size > len(header) and read(start, len(header)) == header:
            continue
        if _parse_header(read(start, size)) != ((width, height), "RGB"):
            return index
    return None


def _parse_header(encoded: bytes) -> tuple[tuple[int, int], str] | None:
    """(width, height) and mode; None if Pillow cannot read the header, whatever it raises."""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(encoded), formats=["JPEG"]) as image:
        return image.size, image.mode
    return None


def _find_frame(image: bytes, frame: bytes) -> int:
    """The position of the frame header, from segment to segment; -1 if it is not `frame`, or not found."""
    at = 2
    while image[at : at + 1] == b"\xff" and not image.startswith(START_OF_FRAME, at) and at + 4 <= len(image):
        if not 0xC0 <= image[at + 1] <= 0xFE or 0xD0 <= image[at + 1] <= 0xD9:
            return -1  # a marker without a length, which no known encoder writes here
        at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
    return at if image.startswith(frame, at) else -1
