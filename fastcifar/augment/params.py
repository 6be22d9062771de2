"""The parameters of augmentation as data: one row per image of the dataset, sampled before any pixel is touched.

Each column has a counter-based stream of its own, so a parameter depends on (seed, epoch, column, index) and nothing
else: not on state, order or worker. NumPy guarantees the bits of Philox (NEP 19), but not those of `Generator`, so
bits are mapped to ranges here, by multiply-and-shift (Lemire, "Fast random integer generation in an interval", 2019).
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.config import AugmentConfig

AugmentParams = npt.NDArray[np.void]
"""(N,) of `params_dtype(...)`: row i holds the parameters of image i."""
Bits = npt.NDArray[np.uint64]


def params_dtype(num_holes: int = 1) -> np.dtype[np.void]:
    """The columns of `AugmentParams`; those of the cutout hold one value per hole. Their names seed their streams."""
    return np.dtype(
        [
            ("crop_y", "<i2"),  # row of the padded image where the crop begins, 0 .. 2 * crop_padding
            ("crop_x", "<i2"),
            ("flip", "?"),
            ("rotation", "<f4"),  # degrees, counter-clockwise; 0: none
            ("hue", "<i2"),  # added to OpenCV's 8-bit hue (0..179), modulo 180
            ("saturation", "<i2"),  # added to the 8-bit saturation, kept within 0..255
            ("value", "<i2"),
            ("cutout_y", "<i2", (num_holes,)),  # top row of the hole; it may reach over each border
            ("cutout_x", "<i2", (num_holes,)),
            ("cutout_height", "<i2", (num_holes,)),  # 0: no hole
            ("cutout_width", "<i2", (num_holes,)),
        ],
        align=True,
    )


def raw_bits(seed: int, epoch: int, column: str, count: int) -> Bits:
    """`count` random 64-bit integers, (count,) uint64: the stream of one column in one epoch."""
    sequence = np.random.SeedSequence([seed, epoch, zlib.crc32(column.encode())])
    return np.random.Philox(sequence).random_raw(count)


def below(bits: Bits, bound: int | npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Map random bits to 0 .. bound - 1, (N,) int64; the bias is below bound / 2**32."""
    return (((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def happens(bits: Bits, probability: float) -> npt.NDArray[np.bool_]:
    """Map random bits to (N,) bool, True with `probability` (to 1 in 2**32)."""
    return (bits >> np.uint64(32)) < np.uint64(round(probability * 2**32))


def sample_params(
    augment: AugmentConfig,
    seed: int,
    epoch: int,
    num_images: int,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> AugmentParams:
    """The parameters of each image of a dataset in one epoch, (num_images,) of `params_dtype(augment.cutout_holes)`.

    Operations that are turned off are the identity. Raises UsageError if `augment` does not fit `image_shape`
    (H, W, 3).
    """
    augment.check_fits(image_shape)
    table = np.zeros(num_images, dtype=params_dtype(augment.cutout_holes))

    def bits(name: str, at: int = epoch) -> Bits:
        return raw_bits(seed, at, name, num_images)

    if augment.crop_padding:
        for name in ("crop_y", "crop_x"):
            table[name] = below(bits(name), 2 * augment.crop_padding + 1)
    if augment.flip and augment.flip_mode == "alternating":
        table["flip"] = (below(bits("flip", at=0), 2) + epoch) % 2
    elif augment.flip:
        table["flip"] = below(bits("flip"), 2)
    if augment.rotate_degrees:
        turned = (below(bits("rotation"), 2**24 + 1) / 2**23 - 1) * augment.rotate_degrees
        table["rotation"] = np.where(happens(bits("rotate"), augment.rotate_p), turned, 0)
    if augment.shifts_colour:
        shifted = happens(bits("colour"), augment.colour_p)
        for name in ("hue", "saturation", "value"):
            most = getattr(augment, f"{name}_shift")
            table[name] = np.where(shifted, below(bits(name), 2 * most + 1) - most, 0)
    if augment.cutout_size:
        _sample_holes(table, augment, image_shape, bits)
    return table


def _sample_holes(table: AugmentParams, augment: AugmentConfig, image_shape: tuple[int, int, int], bits: Any) -> None:
    """Position and size of the holes, in place: centres anywhere in the image."""
    smallest, largest = augment.smallest_cutout, augment.cutout_size
    cut = happens(bits("cutout"), augment.cutout_p) if augment.cutout_p < 1 else True
    for hole in range(augment.cutout_holes):
        suffix = f"_{hole}" if hole else ""
        for axis, side, length in (("y", image_shape[0], "cutout_height"), ("x", image_shape[1], "cutout_width")):
            size: Any = largest
            if smallest < largest:
                size = smallest + below(bits(length + suffix), largest - smallest + 1)
            first = below(bits(f"cutout_{axis}{suffix}"), side) - size // 2
            table[f"cutout_{axis}"][:, hole] = np.where(cut, first, 0)
            table[length][:, hole] = np.where(cut, size, 0)


ROTATION_BITS = 16
"""Fixed-point bits of `rotation_terms`: the kernels rotate with integers, so all give the same pixels."""


def rotation_terms(degrees: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Cosine and sine of angles, in units of 2**-16: (N,) degrees -> (N, 2) int32."""
    radians = np.deg2rad(degrees.astype(np.float64))
    return np.rint(np.stack([np.cos(radians), np.sin(radians)], axis=-1) * 2**ROTATION_BITS).astype(np.int32)
