"""Ten classes of procedural 32x32 images, equal on every machine: a dataset without a download.

The class is that of the largest shape or texture. A smaller one of another class is behind it, bars and dots are in
front of it, the background has a gradient, and some labels are wrong: a small convolutional network classifies most
images correctly, but not all, and a linear model few. Integer arithmetic only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fastcifar.converters.sources import Sample, Source
from fastcifar.data.image_files import Image
from fastcifar.data.manifest import SYNTHETIC

CLASS_NAMES = ("disc", "ring", "square", "frame", "triangle", "plus", "cross", "rows", "columns", "checks")
SIDE = 32
NUM_TRAIN, NUM_TEST = 20_000, 4_000
NOISE = 64
"""Range of the noise, in grey levels."""
CONTRAST = 24
"""Minimum difference between shape and background in each channel, in grey levels."""
NUM_CLUTTER = 8
"""Bars and dots in front of the shape."""
WRONG_LABEL_EVERY = 400
"""On average, one label in so many is wrong."""
_CHUNK = 1_000

Mask = npt.NDArray[np.bool_]


class SyntheticSplit:
    """`num_images` images, generated on demand; classes are balanced but for the wrong labels."""

    def __init__(self, num_images: int, seed: int, stream: int) -> None:
        self._num_images, self._seed, self._stream = num_images, seed, stream

    def __len__(self) -> int:
        return self._num_images

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, self._num_images, _CHUNK):
            labels = np.arange(start, min(start + _CHUNK, self._num_images)) % len(CLASS_NAMES)
            bits = np.random.Philox(np.random.SeedSequence([self._seed, self._stream, start]))
            images = draw_images(labels, bits)
            random = (bits.random_raw(len(labels)) >> np.uint64(32)).astype(np.int64)
            wrong = (labels + 1 + random // WRONG_LABEL_EVERY % (len(CLASS_NAMES) - 1)) % len(CLASS_NAMES)
            labels = np.where(random % WRONG_LABEL_EVERY == 0, wrong, labels)
            yield from map(Sample, images, labels.tolist())


def source(num_train: int = NUM_TRAIN, num_test: int = NUM_TEST, seed: int = 0) -> Source:
    """The synthetic dataset."""
    return Source(
        description=f"{SYNTHETIC}{seed}",
        class_names=CLASS_NAMES,
        splits={"train": SyntheticSplit(num_train, seed, 0), "test": SyntheticSplit(num_test, seed, 1)},
    )


def draw_images(labels: npt.NDArray[np.int64], bits: np.random.Philox) -> Image:
    """One image for each label: (N, 32, 32, 3) uint8."""
    num = len(labels)

    def pick(low: int, high: int, *shape: int) -> npt.NDArray[np.int64]:
        raw = bits.random_raw(num * int(np.prod(shape, dtype=np.int64))).reshape(num, *shape)
        return low + (((raw >> np.uint64(32)) * np.uint64(high - low)) >> np.uint64(32)).astype(np.int64)

    def offsets(low: int, high: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Signed distances of each pixel from a random point, (N, 32, 1) down and (N, 1, 32) right."""
        return np.arange(SIDE)[:, None] - pick(low, high, 1, 1), np.arange(SIDE)[None, :] - pick(low, high, 1, 1)

    def shapes(classes: npt.NDArray[np.int64], radius: npt.NDArray[np.int64], low: int, high: int) -> Mask:
        (dy, dx), phase_y, phase_x = offsets(low, high), pick(0, 8, 1, 1), pick(0, 8, 1, 1)
        period = pick(2, 4, 1, 1)
        return _masks(classes, dy, dx, radius, (dy + 64 + phase_y) // period % 2, (dx + 64 + phase_x) // period % 2)

    ground = pick(0, 256, 1, 1, 3)
    ink = (ground + pick(CONTRAST, 256 - CONTRAST, 1, 1, 3)) % 256  # differs from the ground in each channel
    slope = pick(-2, 3, 1, 1, 3) * np.arange(-SIDE // 2, SIDE // 2)[:, None, None]
    pixels = ground + np.where(pick(0, 2, 1, 1, 1) == 0, slope, slope.transpose(0, 2, 1, 3))
    radius, others = pick(5, 12, 1, 1), (labels + pick(1, len(CLASS_NAMES))) % len(CLASS_NAMES)
    smaller = radius * pick(6, 9, 1, 1) // 10
    pixels = np.where(shapes(others, smaller, 3, 29)[..., None], pick(0, 256, 1, 1, 3), pixels)
    pixels = np.where(shapes(labels, radius, 8, 24)[..., None], ink, pixels)
    for _ in range(NUM_CLUTTER):
        dy, dx = offsets(0, SIDE)
        mark = (np.abs(dy) <= pick(0, 4, 1, 1)) & (np.abs(dx) <= pick(0, 4, 1, 1))
        pixels = np.where(mark[..., None], pick(0, 256, 1, 1, 3), pixels)
    noise = bits.random_raw(num * SIDE * SIDE * 3 // 8).view(np.uint8).reshape(num, SIDE, SIDE, 3) % NOISE
    return (pixels + noise - NOISE // 2).clip(0, 255).astype(np.uint8)


def _masks(
    labels: npt.NDArray[np.int64],
    dy: npt.NDArray[np.int64],
    dx: npt.NDArray[np.int64],
    radius: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
) -> Mask:
    """The pixels of each shape, (N, 32, 32) bool."""
    ay, ax = np.abs(dy), np.abs(dx)
    distance2 = dy**2 + dx**2  # (N, 32, 32)
    farther = np.maximum(ay, ax)
    disc = distance2 <= radius**2
    square = farther * 8 <= radius * 7
    bar = radius // 3
    rules = (
        disc,
        disc & (distance2 * 5 >= radius**2 * 2),
        square,
        square & (farther * 2 > radius),
        (ay <= radius) & (ax * 2 <= dy + radius),
        (farther <= radius) & (np.minimum(ay, ax) <= bar),
        (farther <= radius) & (np.abs(ay - ax) <= bar),
        square & (row == 1),
        square & (column == 1),
        square & ((row + column) % 2 == 1),
    )
    return np.stack([np.broadcast_to(rules[label][i], (SIDE, SIDE)) for i, label in enumerate(labels)])
