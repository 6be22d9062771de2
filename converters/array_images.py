"""Images and labels from arrays: axes, range of values, classes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from fastcifar.converters.array_files import StoredArray, place
from fastcifar.converters.labels import is_missing, normalise_labels
from fastcifar.converters.sources import IndexedSplit, Labels, SourceOptions
from fastcifar.data.image_files import MAX_SIDE, Decoded, ImageError, Preprocessing, convert_image
from fastcifar.errors import DataError, UsageError

log = logging.getLogger(__name__)
CHANNELS = (1, 3, 4)
MAX_IMAGE_BYTES = 64 * 2**20
MAX_IMAGES = 10_000_000
TOLERANCE = 1e-6
"""By which a float may exceed white: its rounding."""
USUAL_WHITES = (1, 15, 16, 31, 63, 255, 1_023, 4_095, 65_535)
MAX_CLASS_NUMBER = 2**53


def array_split(path: Path, array: StoredArray, labels: Labels, options: SourceOptions) -> IndexedSplit:
    """The images in an array, with their labels, (N,) int64. Raises DataError for values that are not those of images.

    path: for messages.
    """
    name = array.header.name
    if array.header.num_bytes // max(1, len(array)) > MAX_IMAGE_BYTES:
        raise DataError(f"{place(path, name)} has shape {array.header.shape}; expected at most 64 MiB an image")
    channels_first = _are_channels_first(path, array, options.channels)
    try:
        white = _find_white(path, array, options.max_value)
    except ImageError as error:
        raise DataError(f"{place(path, name)} {error}; expected images") from error
    return IndexedSplit(
        labels=labels,
        fetch=lambda position: array.items(position, position + 1)[0],
        decode=partial(_decode, channels_first=channels_first, white=white, rule=options.preprocessing),
        origin=lambda position: f"{name}[{position}]",
    )


def _are_channels_first(path: Path, array: StoredArray, channels: str | None) -> bool:
    """Where the channels are, from the shape and the option. Raises DataError if that is not clear."""
    name, shape = place(path, array.header.name), array.item_shape
    shown = f"{name} has shape {array.header.shape}"
    if len(shape) == 2:
        if channels is not None:
            raise UsageError(f"channels is {channels!r}, but {shown}, without an axis of channels")
        return False
    first, last = shape[0] in CHANNELS, shape[-1] in CHANNELS
    if len(shape) != 3 or not (first or last):
        raise DataError(f"{shown}; expected images (N, H, W), (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 channels C")
    if channels is not None:
        if not (first if channels == "first" else last):
            raise UsageError(f"channels is {channels!r}, but {shown}; expected 1, 3 or 4 channels there")
        return channels == "first"
    if first and last:
        raise DataError(f"{shown}, whose channels may be first or last; say which with --channels first or last")
    return first


def _find_white(path: Path, array: StoredArray, max_value: float | None) -> float:
    """The value of white. Raises DataError if there are values that are not between black and white."""
    name, dtype = place(path, array.header.name), array.header.dtype
    if dtype.kind == "b":
        return 1.0
    if dtype.kind not in "uif":
        raise DataError(f"{name} has dtype {dtype}; expected numbers")
    default = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65_535}.get(dtype, 1 if dtype.kind == "f" else None)
    white = max_value if max_value is not None else default
    enough = math.inf if max_value is not None or dtype.kind != "u" or white is None else white / 15
    highest = -math.inf
    for start, block in array.blocks():
        low, high = float(block.min()), float(block.max())
        if not (low >= 0 and high < math.inf):  # also NaN
            bad = ~np.isfinite(block) if dtype.kind == "f" else block < 0
            bad = bad | (block < 0)
            index = start + int(np.flatnonzero(bad.reshape(len(block), -1).any(axis=1))[0])
            value = block[bad][0]
            raise DataError(
                f"{name}[{index}] has the value {value:.4g}; expected values from 0 (black) to white: undo a "
                "normalisation, or remove the image"
            )
        highest = max(highest, high)
        if max_value is not None and high > max_value + TOLERANCE * max_value:
            index = start + int(np.flatnonzero(block.reshape(len(block), -1).max(axis=1) > max_value)[0])
            raise DataError(
                f"{name}[{index}] has the value {high:g}; expected at most {max_value:g}, as --max-value says"
            )
        if highest >= enough:
            break
    suggested = next((usual for usual in USUAL_WHITES if highest <= usual and usual != white), highest)
    is_byte = dtype == np.uint16 and max_value is None and 0 < highest <= 255
    if white is None or is_byte or highest > white * (1 + TOLERANCE):
        expected = f"0..{white:g}" if white is not None else "uint8"
        raise DataError(
            f"{name} has dtype {dtype} and values of 0..{highest:g}; expected {expected}: say which value is white, "
            f"e.g. --max-value {255 if is_byte else suggested:g}"
        )
    if 0 < highest * 15 < white:
        log.warning(
            "%s: the images are almost black: the largest value is %g, and white is %g; say if another value is white, "
            "e.g. --max-value %g",
            *(name, highest, white, suggested),
        )
    return float(white)


def _decode(image: npt.NDArray[Any], channels_first: bool, white: float, rule: Preprocessing) -> Decoded:
    """An image (H, W), (H, W, C) or (C, H, W) with values of 0..white."""
    changes: tuple[str, ...] = ()
    if image.dtype == np.uint16 and white == 65_535:
        pixels, changes = (image >> 8).astype(np.uint8), ("16-bit",)  # as an image file's
    elif image.dtype == np.uint8 and white == 255:
        pixels = image
    else:
        pixels = np.clip(np.rint(image.astype(np.float64) * 255 / white), 0, 255).astype(np.uint8)
        changes = ("scaled",)
    if channels_first:
        pixels = pixels.transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
    pixels = np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    size = pixels.shape[0], pixels.shape[1]
    if pixels.ndim == 3 and pixels.shape[2] == 3 and rule.size in (None, size) and max(size) <= MAX_SIDE:
        return Decoded(pixels, size, changes)
    if not pixels.size:
        raise ImageError(f"is {size[0]}x{size[1]}")
    converted = convert_image(PIL.Image.fromarray(pixels), rule)
    return converted._replace(changes=changes + converted.changes)


def read_labels(path: Path, array: StoredArray) -> tuple[Labels, tuple[str, ...]]:
    """The index of each label in a list, (N,) int64, and the list: texts, or whole numbers as text.

    The array is (N,), (N, 1), or one-hot (N, C), whose list is '0', '1', … Raises DataError for others.
    """
    name = place(path, array.header.name)
    try:
        values = array.load()
    except ImageError as error:
        raise DataError(f"{name} {error}; expected labels (N,)") from error
    if values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    if values.ndim == 2:
        return _from_one_hot(name, values)
    if values.ndim != 1 or not 0 < len(values) <= MAX_IMAGES:
        raise DataError(f"{name} has shape {values.shape}; expected labels (N,), up to {MAX_IMAGES:,}")
    if values.dtype.kind == "f":
        bad = np.flatnonzero(~((values == np.floor(values)) & (np.abs(values) <= MAX_CLASS_NUMBER)))
        if len(bad):
            raise DataError(f"{name}[{bad[0]}] is {values[bad[0]]:g}; expected a class: a whole number")
    if values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name} has text that is not UTF-8; expected labels of dtype str") from error
    unique, first, indices = np.unique(values, return_index=True, return_inverse=True)
    where: Callable[[int], str] = lambda index: f"{array.header.name}[{first[index]}]"  # noqa: E731
    if values.dtype.kind != "U":
        return indices.astype(np.int64), normalise_labels(path, [str(int(value)) for value in unique], where)
    texts = [str(text) for text in unique]
    if empty := [index for index, text in enumerate(texts) if is_missing(text)]:
        raise DataError(f"{path}: {where(empty[0])} has no label; expected a class name")
    return indices.astype(np.int64), normalise_labels(path, texts, where)


def _from_one_hot(name: str, values: npt.NDArray[Any]) -> tuple[Labels, tuple[str, ...]]:
    is_one = values == 1
    wrong = np.flatnonzero((is_one.sum(axis=1) != 1) | ~((values == 0) | is_one).all(axis=1))
    if len(wrong):
        raise DataError(
            f"{name} has shape {values.shape}, and its row {wrong[0]} is not one 1 among zeros; expected labels (N,), "
            "(N, 1), or one-hot (N, C)"
        )
    return is_one.argmax(axis=1).astype(np.int64), tuple(map(str, range(values.shape[1])))
