"""The parameters of augmentation as data: one row per image of the dataset, sampled before any pixel is touched.

Each column has a counter-based stream of its own, so a parameter depends on (seed, epoch, column, index) and nothing
else: not on state, order or worker. NumPy guarantees the bits of Philox (NEP 19), but not those of `Generator`, so
bits are mapped to ranges here, by multiply-and-shift (Lemire, "Fast random integer generation in an interval", 2019).
"""

from __future__ import annotations

import decimal
import functools
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.config import AugmentConfig

AugmentParams = npt.NDArray[np.void]
"""(N,) of `params_dtype(...)`: row i holds the parameters of image i."""
Bits = npt.NDArray[np.uint64]


def params_dtype(num_holes: int = 1, *, mixes: bool = False) -> np.dtype[np.void]:
    """The columns of `AugmentParams`; those of the cutout hold one value per hole. Their names seed their streams.

    mixes: with the columns of MixUp and CutMix, which only a run that mixes pays for.
    """
    mixing = [
        ("partner", "<u4"),  # selects the other image: see `mixing.plan_mix`
        ("partner_weight", "<f4"),  # of its label, and in MixUp of its pixels, 0 .. 1
        ("mix_y", "<i2"),  # top row of the box of CutMix, inside the image
        ("mix_x", "<i2"),
        ("mix_height", "<i2"),  # 0: no box, that is MixUp
        ("mix_width", "<i2"),
    ]
    return np.dtype(
        [
            ("crop_y", "<i2"),  # row of the padded image where the crop begins, 0 .. 2 * crop_padding
            ("crop_x", "<i2"),
            ("flip", "?"),
            ("rotation", "<f4"),  # degrees, counter-clockwise; 0: none
            ("hue", "<i2"),  # added to OpenCV's 8-bit hue (0..179), modulo 180
            ("saturation", "<i2"),  # added to the 8-bit saturation, kept within 0..255
            ("value", "<i2"),
            ("brightness", "<i2"),  # added to red, green and blue
            ("contrast", "<i2"),  # the change about mid-grey, in units of 1/256: see `tone_table`
            ("cutout_y", "<i2", (num_holes,)),  # top row of the hole; it may reach over each border
            ("cutout_x", "<i2", (num_holes,)),
            ("cutout_height", "<i2", (num_holes,)),  # 0: no hole
            ("cutout_width", "<i2", (num_holes,)),
            *(mixing if mixes else []),
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
    """The parameters of each image of a dataset in one epoch, (num_images,) of `params_dtype(augment.cutout_holes)`,
    and with `mixes` if images are mixed.

    Operations that are turned off are the identity. Raises UsageError if `augment` does not fit `image_shape`
    (H, W, 3).

    Examples:
        >>> params = sample_params(AugmentConfig(crop_padding=4), seed=0, epoch=1, num_images=100)
        >>> params.shape, bool((params["crop_x"] <= 8).all())
        ((100,), True)
    """
    augment.check_fits(image_shape)
    table = np.zeros(num_images, dtype=params_dtype(augment.cutout_holes, mixes=augment.mixes))

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
    if augment.shifts_colour or augment.adjusts_tone:
        changed = happens(bits("colour"), augment.colour_p)
        largest = {name: getattr(augment, f"{name}_shift") for name in ("hue", "saturation", "value")}
        largest |= {"brightness": augment.brightness, "contrast": round(256 * augment.contrast)}
        for name, most in largest.items():
            if most:
                table[name] = np.where(changed, below(bits(name), 2 * most + 1) - most, 0)
    if augment.cutout_size:
        _sample_holes(table, augment, image_shape, bits)
    if augment.mixes:
        _sample_mixing(table, augment, image_shape, bits)
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


def _sample_mixing(table: AugmentParams, augment: AugmentConfig, image_shape: tuple[int, int, int], bits: Any) -> None:
    """Partner, weight and box, in place, by the formulas of torchvision's `v2.MixUp` and `v2.CutMix`.

    The box of CutMix has the area 1 - l, l from Beta(a, a), and its centre anywhere in the image; it is clipped at the
    border, and the weight is the area that is left.
    """
    table["partner"] = bits("partner") >> np.uint64(32)
    pastes: Any = bool(augment.cutmix)
    if augment.mixup and augment.cutmix:
        pastes = happens(bits("mix"), 0.5)
    if augment.mixup:
        table["partner_weight"] = np.where(pastes, 0, 1 - sample_beta(bits("mixup"), augment.mixup))
    if not augment.cutmix:
        return
    half = 0.5 * np.sqrt(1 - sample_beta(bits("cutmix"), augment.cutmix))  # of the sides, as shares of the image's
    area: Any = 1
    for axis, side, length in (("y", image_shape[0], "mix_height"), ("x", image_shape[1], "mix_width")):
        centre, reach = below(bits(f"mix_{axis}"), side), (half * side).astype(np.int64)
        first, last = np.maximum(centre - reach, 0), np.minimum(centre + reach, side)
        area = area * (last - first)
        table[f"mix_{axis}"] = np.where(pastes, first, 0)
        table[length] = np.where(pastes, last - first, 0)
    share = area / (image_shape[0] * image_shape[1])
    table["partner_weight"] = np.where(pastes, share, table["partner_weight"])
    nothing = pastes & (area == 0)  # a row of no change, whichever of its sides is 0
    for name in ("mix_height", "mix_width"):
        table[name][nothing] = 0


BETA_STEPS = 2**12
"""Values of Beta(a, a) are multiples of 1 / BETA_STEPS: a 16th of a grey level in a blend of two images."""


def sample_beta(bits: Bits, alpha: float) -> npt.NDArray[np.float64]:
    """Map random bits to Beta(alpha, alpha), (N,) float64: multiples of 1 / BETA_STEPS from 0 to 1."""
    return np.searchsorted(_beta_thresholds(alpha), bits >> np.uint64(32), side="right") / BETA_STEPS


@functools.cache
def _beta_thresholds(alpha: float) -> Bits:
    """(BETA_STEPS,) uint64, rising: 32 random bits from threshold k - 1 to below threshold k mean k / BETA_STEPS.

    Threshold k is 2**32 I(x), with the regularised incomplete beta function I of x = (k + 1/2) / BETA_STEPS. For
    x <= 1/2 it is proportional to (x (1 - x))**a F(2a, 1; a + 1; x) (DLMF 8.17.8), and 1/2 at x = 1/2. The power is
    that of `decimal`, whose exp and ln are correctly rounded, as are the float64 operations of the series: the table is
    the same on every machine, which the pow of C libraries is not.
    """
    context, exponent = decimal.Context(prec=25), decimal.Decimal(alpha)
    odd = range(1, BETA_STEPS, 2)
    bases = (context.divide(k * (2 * BETA_STEPS - k), BETA_STEPS**2) for k in odd)  # 4 x (1 - x)
    powers = np.array([float(context.exp(context.multiply(exponent, context.ln(base)))) for base in bases])
    x = np.array([*odd, BETA_STEPS]) / (2 * BETA_STEPS)
    series, term, n = np.ones(len(x)), np.ones(len(x)), 0
    while term[-1] > 2**-60 * series[-1]:
        term = term * ((2 * alpha + n) / (alpha + 1 + n)) * x
        series, n = series + term, n + 1
    low = np.floor(2**31 * powers * series[:-1] / series[-1]).astype(np.uint64)
    return np.concatenate([low, np.uint64(2**32) - low[::-1]])


ROTATION_BITS = 16
"""Fixed-point bits of `rotation_terms`: the kernels rotate with integers, so all give the same pixels."""


def rotation_terms(degrees: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Cosine and sine of angles, in units of 2**-16: (N,) degrees -> (N, 2) int32."""
    radians = np.deg2rad(degrees.astype(np.float64))
    return np.rint(np.stack([np.cos(radians), np.sin(radians)], axis=-1) * 2**ROTATION_BITS).astype(np.int32)


def tone_table(brightness: int, contrast: int) -> npt.NDArray[np.uint8]:
    """What each value of 8 bits becomes, (256,) uint8, by the integers that all kernels compute with.

    brightness: added to the value. contrast: the change of its distance from 128, in units of 1/256.
    """
    values = np.arange(256, dtype=np.int32)
    return ((((values + brightness - 128) * (256 + contrast) + 32_896) >> 8).clip(0, 255)).astype(np.uint8)
