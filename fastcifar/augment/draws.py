"""The choices of augmentation, as data: one row per image of the dataset, drawn before any pixel is touched.

Each column has a counter-based stream of its own, so a choice depends on (seed, epoch, column, row) and on nothing
else: no state, no order, no worker. NumPy promises the bits of Philox for ever (NEP 19), not those of `Generator`;
so bits are mapped to ranges here, by multiply-and-shift (Lemire, "Fast random integer generation in an interval",
2019).
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.config import AugmentConfig
from fastcifar.errors import UsageError

CHOICES = np.dtype(
    [
        ("crop_y", "<i2"),  # row of the padded image where the crop begins, 0 .. 2 * crop_padding
        ("crop_x", "<i2"),
        ("flip", "?"),
        (
            "cutout_y",
            "<i2",
        ),  # row of the crop where the square begins; may be negative or reach over the border
        ("cutout_x", "<i2"),
    ]
)
Choices = npt.NDArray[np.void]
"""(N,) of `CHOICES`: row i holds the choices for image i."""


def raw_bits(seed: int, epoch: int, column: str, count: int) -> npt.NDArray[np.uint64]:
    """`count` random 64-bit numbers, (count,) uint64: the stream of one column in one epoch."""
    sequence = np.random.SeedSequence([seed, epoch, zlib.crc32(column.encode())])
    return np.random.Philox(sequence).random_raw(count)


def below(bits: npt.NDArray[np.uint64], bound: int) -> npt.NDArray[np.int64]:
    """Map random bits to 0 .. bound - 1, (N,) int64; the bias is below bound / 2**32."""
    return (((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def draws(
    augment: AugmentConfig,
    seed: int,
    epoch: int,
    num_images: int,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> Choices:
    """The choices for every image of a dataset in one epoch, (num_images,) of `CHOICES`.

    What `augment` turns off is drawn as no change. Raises UsageError if `augment` does not fit `image_shape` (H, W, 3).
    """
    augment.check_fits(image_shape)
    height, width, _ = image_shape
    table = np.zeros(num_images, dtype=CHOICES)

    def column(name: str, bound: int, first: int = 0) -> None:
        table[name] = first + below(raw_bits(seed, epoch, name, num_images), bound)

    if augment.crop_padding:
        column("crop_y", 2 * augment.crop_padding + 1)
        column("crop_x", 2 * augment.crop_padding + 1)
    if augment.flip:
        column("flip", 2)
    if augment.cutout_size:
        column("cutout_y", height, -(augment.cutout_size // 2))
        column("cutout_x", width, -(augment.cutout_size // 2))
    return table


def check_choices(choices: Choices, augment: AugmentConfig, num_images: int, image_shape: tuple[int, int, int]) -> None:
    """Raise UsageError unless `choices` is a table for `num_images` images that stays within what `augment` allows.

    The kernels trust the table after this.
    """
    if choices.dtype != CHOICES or choices.shape != (num_images,):
        raise UsageError(
            f"choices is {choices.dtype} of shape {choices.shape}; expected {CHOICES} of shape ({num_images},)"
        )
    half = augment.cutout_size // 2
    for axis, side in (("y", image_shape[0]), ("x", image_shape[1])):
        for name, low, high in (
            (f"crop_{axis}", 0, 2 * augment.crop_padding),
            (f"cutout_{axis}", -half, side - half),
        ):
            column = choices[name]
            if num_images and (column.min() < low or column.max() > high):
                raise UsageError(f"{name} is {column.min()}..{column.max()}; expected {low}..{high}")


def columns_of(choices: Choices) -> dict[str, npt.NDArray[Any]]:
    """The columns of a table, each contiguous."""
    return {name: np.ascontiguousarray(choices[name]) for name in choices.dtype.names or ()}
