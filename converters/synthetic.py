"""Ten classes of procedural 32x32 images, the same on every machine, for trying things without any data.

A shape or texture of random place, size and colours on a noisy ground. Which class it is does not show in any single
pixel, so that a linear model fails where a small convolutional network succeeds. Whole-number arithmetic only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fastcifar.converters.sources import Image, Source

CLASS_NAMES = ("disc", "ring", "square", "frame", "triangle", "plus", "cross", "rows", "columns", "checks")
SIDE = 32
NUM_TRAIN, NUM_TEST = 50_000, 10_000
NOISE = 32
_CHUNK = 1_000


class SyntheticSplit:
    """`num_images` images, the same number of each class (within one), made as they are asked for."""

    def __init__(self, num_images: int, seed: int, stream: int) -> None:
        self._num_images, self._seed, self._stream = num_images, seed, stream

    def __len__(self) -> int:
        return self._num_images

    def __iter__(self) -> Iterator[tuple[Image, int]]:
        for start in range(0, self._num_images, _CHUNK):
            labels = np.arange(start, min(start + _CHUNK, self._num_images)) % len(CLASS_NAMES)
            bits = np.random.Philox(np.random.SeedSequence([self._seed, self._stream, start]))
            yield from zip(draw_images(labels, bits), labels.tolist(), strict=True)


def source(num_train: int = NUM_TRAIN, num_test: int = NUM_TEST, seed: int = 0) -> Source:
    """The synthetic dataset."""
    return Source(
        description=f"synthetic, seed {seed}",
        class_names=CLASS_NAMES,
        splits={"train": SyntheticSplit(num_train, seed, 0), "test": SyntheticSplit(num_test, seed, 1)},
    )


def draw_images(labels: npt.NDArray[np.int64], bits: np.random.Philox) -> Image:
    """One image for each label: (N, 32, 32, 3) uint8."""
    num = len(labels)

    def pick(low: int, high: int, *shape: int) -> npt.NDArray[np.int64]:
        raw = bits.random_raw(num * int(np.prod(shape, dtype=np.int64))).reshape(num, *shape)
        return low + (((raw >> np.uint64(32)) * np.uint64(high - low)) >> np.uint64(32)).astype(np.int64)

    radius = pick(7, 13, 1, 1)
    dy = np.arange(SIDE)[:, None] - pick(10, 22, 1, 1)  # (N, 32, 1)
    dx = np.arange(SIDE)[None, :] - pick(10, 22, 1, 1)  # (N, 1, 32)
    phase_y, phase_x = pick(0, 8, 1, 1), pick(0, 8, 1, 1)
    period = pick(2, 4, 1, 1)
    mask = _masks(labels, dy, dx, radius, (dy + 64 + phase_y) // period % 2, (dx + 64 + phase_x) // period % 2)
    ground = pick(0, 256, 1, 1, 3)
    ink = (ground + pick(80, 176, 1, 1, 3)) % 256  # at least 80 away from the ground in each channel
    noise = bits.random_raw(num * SIDE * SIDE * 3 // 8).view(np.uint8).reshape(num, SIDE, SIDE, 3) % NOISE
    pixels = np.where(mask[..., None], ink, ground) + noise - NOISE // 2
    return pixels.clip(0, 255).astype(np.uint8)


def _masks(
    labels: npt.NDArray[np.int64],
    dy: npt.NDArray[np.int64],
    dx: npt.NDArray[np.int64],
    radius: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Which pixels are inked: (N, 32, 32), each image by the rule of its class."""
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
