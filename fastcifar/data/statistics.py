"""Statistics of a dataset: mean and standard deviation of the channels, classes and draws from them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastcifar.data.tables import MAX_CLASSES
from fastcifar.errors import DataError, join_names

HELD_OUT_SHARE = 10  # one in ten, which is 5,000 of CIFAR's 50,000
MIN_STEPS = 8
"""Of an epoch, with a batch size that is suggested."""


def channel_histogram(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """How often each value occurs in each channel: (..., 3) uint8 -> (3, 256) int64."""
    flat = pixels.reshape(-1, 3)
    return np.stack([np.bincount(flat[:, channel], minlength=256) for channel in range(3)])


def channel_statistics(
    histogram: npt.NDArray[np.int64],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and population standard deviation of each channel, 0..255, from a (3, 256) histogram; exact sums."""
    values = np.arange(256, dtype=np.int64)
    count = histogram.sum(axis=1)
    mean = (histogram @ values) / count
    deviations = (values[None, :] - mean[:, None]) ** 2
    std = np.sqrt((histogram * deviations).sum(axis=1) / count)
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))


def describe_empty_classes(class_names: Sequence[str], labels: npt.NDArray[np.int64]) -> str:
    """A message that names the classes without images; empty if there are none."""
    counts = np.bincount(labels, minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
    return f"no image of {len(empty):,} of {len(counts):,} classes: {join_names(empty)}" if empty else ""


def held_out_by_default(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many images of each class are held out for validation: a tenth, rounded down, but at least one of a class
    with two. counts: training images of each class, (num_classes,) int64."""
    return np.minimum(np.maximum(counts // HELD_OUT_SHARE, 1), np.maximum(counts - 1, 0))


def fitting_batch_size(num_images: int) -> int:
    """The largest power of two with which an epoch has MIN_STEPS or more steps, but at least 2."""
    return max(2, 1 << (num_images // MIN_STEPS).bit_length() >> 1)


def draw_by_class(
    labels: npt.NDArray[np.int64], num_drawn: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Which images are drawn, (N,) bool: of each class `num_drawn`, (num_classes,) int64, those of the smallest keys.

    keys: (N,) uint64, random.
    """
    counts = np.bincount(labels, minlength=len(num_drawn))
    by_class = np.lexsort((keys, labels))  # class after class, each in random order
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    drawn = np.zeros(len(labels), dtype=bool)
    drawn[by_class] = rank < np.repeat(num_drawn, counts)
    return drawn


def require_classes(path: str | os.PathLike[str], class_names: Sequence[str]) -> None:
    """Raise DataError unless there are at least two classes, as a classifier cannot learn from one, and MAX_CLASSES."""
    if len(class_names) < 2:
        names = f"only the class {class_names[0]!r}" if class_names else "no class"
        raise DataError(f"{os.fspath(path)}: has {names}; expected at least two classes")
    if len(class_names) > MAX_CLASSES:
        raise DataError(
            f"{os.fspath(path)}: has {len(class_names):,} classes; expected at most {MAX_CLASSES:,}: are they labels?"
        )
