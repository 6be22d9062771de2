"""Images as Python programs hold them, of Pillow, NumPy or torch, to (H, W, 3) uint8 RGB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from fastcifar.converters.images import read_image_file
from fastcifar.data.image_files import Decoded, ImageError, Preprocessing, convert_image, decode_image
from fastcifar.errors import DataError, Stopped, one_line

TOLERANCE = 1e-3
"""By which a float image may leave 0..1: that of an antialiased resize in half precision."""
EXPECTED = "expected an image of Pillow, or an array or tensor of shape (H, W), (H, W, C) or (C, H, W), C = 1, 3 or 4"


def to_image(
    image: Any, preprocessing: Preprocessing, channels: str | None = None, roots: Sequence[Path] = ()
) -> Decoded:
    """An image of Pillow, a NumPy array, a tensor, or the {'bytes': …, 'path': …} of a Hugging Face dataset.

    Arrays are uint8, or float of values 0..1. channels: 'first' or 'last', for a shape that fits both.
    roots: folders in which a 'path' without 'bytes' may be. Raises ImageError for an image that is damaged, DataError
    for something else; the message continues a sentence that begins with the name of the image.
    """
    if isinstance(image, PIL.Image.Image):
        try:
            image.load()  # as the user sees it: without libjpeg's scaled decoding
        except Stopped:
            raise
        except Exception as error:  # Pillow raises many types for a damaged image
            raise ImageError(f"not a readable image ({one_line(error)})") from error
        return convert_image(image, preprocessing)
    if isinstance(image, Mapping) and "bytes" in image:
        return decode_image(_file_content(image, roots), preprocessing)
    if hasattr(image, "detach"):  # a tensor
        image = image.detach().cpu()
        image = (image.float() if str(image.dtype) == "torch.bfloat16" else image).numpy()
    if not isinstance(image, np.ndarray):
        raise DataError(f"is a {type(image).__name__}; {EXPECTED}")
    pixels = _to_uint8(_channels_last(image, channels))
    return convert_image(PIL.Image.fromarray(np.ascontiguousarray(pixels)), preprocessing)


def _channels_last(array: npt.NDArray[Any], channels: str | None) -> npt.NDArray[Any]:
    """(H, W), (H, W, C) or (C, H, W) -> (H, W) or (H, W, C), C = 3 or 4."""
    shape = array.shape
    if 0 in shape:
        raise DataError(f"has shape {shape}; {EXPECTED}")
    if array.ndim == 2:
        return array
    if array.ndim != 3:
        hint = "; give the dataset, not a DataLoader" if array.ndim == 4 else ""
        raise DataError(f"has shape {shape}; {EXPECTED}{hint}")
    is_first, is_last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
    if is_first and is_last:
        if channels is None:
            raise DataError(f"has shape {shape}, channels first or last; say which with channels='first' or 'last'")
        is_first = channels == "first"
    elif not (is_first or is_last):
        raise DataError(f"has shape {shape}; {EXPECTED}")
    array = array.transpose(1, 2, 0) if is_first else array  # (C, H, W) -> (H, W, C)
    return array[..., 0] if array.shape[2] == 1 else array


def _to_uint8(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise DataError(f"is {array.dtype}; expected uint8, or float of values 0..1")
    low, high = float(array.min()), float(array.max())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # NaN, too
        why = "not normalised" if low < -TOLERANCE else "or uint8 of 0..255"
        raise DataError(f"is {array.dtype} of values {low:.3g}..{high:.3g}; expected 0..1, {why}")
    return np.rint(array.clip(0, 1).astype(np.float32) * 255).astype(np.uint8)


def _file_content(image: Mapping[str, Any], roots: Sequence[Path]) -> bytes:
    content, path = image["bytes"], image.get("path")
    if isinstance(content, bytes):
        return content
    if content is None and isinstance(path, str) and roots:
        file = Path(path).resolve()
        if any(file.is_relative_to(root.resolve()) for root in roots):
            return read_image_file(file)
        raise DataError(f"is the file {path!a}, outside the cache of Hugging Face; expected one in it")
    raise ImageError("has no content ('bytes' is null)")
