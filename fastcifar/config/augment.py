"""What can happen to a training image."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace

from fastcifar.config.setting import Choice, Config, Integer, Number, Switch, Text, setting
from fastcifar.errors import UsageError, one_line
from fastcifar.io.checks import require_int
from fastcifar.io.reading import read_settings

MAX_SIDE = 16_383  # of an image: the parameters have 16 bits
MAX_ALPHA = 100.0


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Config):
    """What can happen to a training image; `fastcifar.augment.params` samples what does. The rows of a parameter table
    are applied in this order: crop, flip, rotation, colour (hue, saturation and value, then brightness and contrast),
    cutout; then normalisation, then mixing with another image.

    Examples:
        >>> augment = AugmentConfig(crop_padding=2, padding_mode="reflect", cutout_size=0)
        >>> augment.flip
        True
    """

    crop_padding: int = setting(
        4, Integer(0, MAX_SIDE), "Pixels added on each side before a random crop of the original size; 0: no crop."
    )
    padding_mode: str = setting(
        "zero", Choice(("zero", "reflect")), "Pixels outside the image, for crop and rotation; reflect repeats no edge."
    )
    flip: bool = setting(True, Switch("--no-flip"), "Horizontal flip.")
    flip_mode: str = setting(
        "random",
        Choice(("random", "alternating")),
        "random: with probability 0.5; alternating: every second epoch, half of the images in each (airbench).",
    )
    rotate_degrees: float = setting(
        0.0, Number(0, 180), "Rotate about the centre by up to this, either way, after crop and flip; 0: off."
    )
    rotate_p: float = setting(1.0, Number(0, 1), "Probability of a rotation.")
    hue_shift: int = setting(
        0, Integer(0, 90), "Change the hue by up to this, either way, on OpenCV's 8-bit scale (0..179, 2 degrees each)."
    )
    saturation_shift: int = setting(0, Integer(0, 255), "Change the saturation (0..255) by up to this, either way.")
    value_shift: int = setting(
        0, Integer(0, 255), "Change the value, the V of HSV (0..255), by up to this, either way."
    )
    brightness: int = setting(
        0, Integer(0, 255), "Add up to this, either way, to each value (0..255) of red, green and blue."
    )
    contrast: float = setting(
        0.0, Number(0, 1), "Change the contrast about mid-grey (128) by up to this share, either way."
    )
    colour_p: float = setting(
        1.0,
        Number(0, 1),
        "Probability of a change of hue, saturation, value, brightness and contrast, of all together.",
    )
    cutout_size: int = setting(
        8,
        Integer(0, MAX_SIDE),
        "Side of the square that cutout fills; its centre is anywhere in the image; clipped at the border; 0: off.",
    )
    cutout_min_size: int | None = setting(
        None, Integer(1, MAX_SIDE), "Sample height and width separately, each from this to --cutout-size."
    )
    cutout_p: float = setting(1.0, Number(0, 1), "Probability of cutout.")
    cutout_holes: int = setting(1, Integer(1, 64), "Squares per image; they may overlap.")
    cutout_fill: str = setting(
        "mean", Choice(("mean", "zero")), "Fill with the mean of the dataset, rounded to 8 bits, or with zero."
    )
    mixup: float = setting(
        0.0,
        Number(0, MAX_ALPHA),
        "MixUp (Zhang et al. 2018): blend each image and its label with another, weight from Beta(a, a); 0: off.",
    )
    cutmix: float = setting(
        0.0,
        Number(0, MAX_ALPHA),
        "CutMix (Yun et al. 2019): paste a box of another image, area from Beta(a, a); with --mixup each image has one "
        "of the two; 0: off.",
    )
    pipeline: str | None = setting(
        None,
        Text(),
        "An Albumentations pipeline, saved with A.save (JSON or YAML), in place of these augmentations but --mixup and "
        "--cutmix.",
    )

    def check(self) -> None:
        if self.cutout_size and self.cutout_min_size is not None:
            require_int("cutout_min_size", self.cutout_min_size, 1, self.cutout_size)
        others = ("crop_padding", "flip", "rotate_degrees", "shifts_colour", "adjusts_tone", "cutout_size")
        if self.pipeline is not None and any(getattr(self, name) for name in others):
            raise UsageError("pipeline is given next to other augmentations; expected it alone: see read_pipeline")

    @property
    def smallest_cutout(self) -> int:
        """The smallest height and width of a hole."""
        return self.cutout_size if self.cutout_min_size is None or not self.cutout_size else self.cutout_min_size

    @property
    def mixes(self) -> bool:
        """True if images are mixed with others of their batch."""
        return bool(self.mixup or self.cutmix)

    @property
    def shifts_colour(self) -> bool:
        """True if hue, saturation or value may change."""
        return bool(self.hue_shift or self.saturation_shift or self.value_shift)

    @property
    def adjusts_tone(self) -> bool:
        """True if brightness or contrast may change."""
        return bool(self.brightness or self.contrast)

    def check_fits(self, image_shape: tuple[int, int, int]) -> None:
        """Raise UsageError if these settings do not suit images of `image_shape` (H, W, 3)."""
        height, width, _ = image_shape
        if max(height, width) > MAX_SIDE:
            raise UsageError(f"the images are {height}x{width}; expected at most {MAX_SIDE}x{MAX_SIDE}")
        smallest = min(height, width)
        if self.cutout_size > smallest:
            raise UsageError(
                f"cutout_size is {self.cutout_size}; the images are {height}x{width}: expected 0..{smallest}"
            )
        if self.padding_mode == "reflect" and self.crop_padding >= smallest:
            raise UsageError(
                f"crop_padding is {self.crop_padding} with padding_mode 'reflect'; "
                f"the images are {height}x{width}: expected 0..{smallest - 1}"
            )


NO_AUGMENT = AugmentConfig(crop_padding=0, flip=False, cutout_size=0)


def read_pipeline(path: str | os.PathLike[str]) -> AugmentConfig:
    """The augmentation in a file written by Albumentations' `A.save`, JSON or YAML. Raises UsageError if it cannot be
    read; whether Albumentations accepts it is checked by the loader."""
    raw = read_settings(path, "pipeline", "a file that albumentations.save wrote", max_bytes=2**20, key="transform")
    try:
        return replace(NO_AUGMENT, pipeline=json.dumps(raw))
    except (TypeError, ValueError, RecursionError) as error:  # dates, and keys that are not text, in YAML
        raise UsageError(
            f"{os.fspath(path)}: not a pipeline ({one_line(error)}); expected a file that albumentations.save wrote"
        ) from error
