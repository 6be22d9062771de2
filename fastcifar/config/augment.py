"""What can happen to a training image."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace

from fastcifar.config.setting import Choice, Config, Integer, Number, Switch, Text, setting
from fastcifar.errors import UsageError, one_line
from fastcifar.io.checks import require_int
from fastcifar.io.reading import read_settings

PADDING_MODES = ("zero", "reflect")
CUTOUT_FILLS = ("mean", "zero")
FLIP_MODES = ("random", "alternating")
MAX_SIDE = 16_383  # of an image: the parameters have 16 bits


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Config):
    """What can happen to a training image; `fastcifar.augment.params` samples what does. The rows of a parameter table
    are applied in this order: crop, flip, rotation, colour, cutout."""

    crop_padding: int = 4
    """Pixels added on each side before a crop of the original size; 0 turns the crop off."""
    padding_mode: str = "zero"
    """What lies outside the image, for crop and rotation: 'zero' (black) or 'reflect' (mirrored, edge not repeated)."""
    flip: bool = True
    """Mirror left to right."""
    flip_mode: str = "random"
    """'random': with probability 0.5; 'alternating': every second epoch, half of the images in each (as airbench)."""
    rotate_degrees: float = 0.0
    """Turn about the centre by up to so many degrees, either way, after crop and flip; 0 turns it off."""
    rotate_p: float = 1.0
    """Probability of a rotation."""
    hue_shift: int = 0
    """Change of OpenCV's 8-bit hue (0..179, so 2 degrees each) by up to so much, either way."""
    saturation_shift: int = 0
    """Change of the 8-bit saturation (0..255), likewise."""
    value_shift: int = 0
    """Change of the 8-bit value, the V of HSV, likewise."""
    colour_p: float = 1.0
    """Probability of a shift of hue, saturation and value."""
    cutout_size: int = 8
    """Side of the square that is blanked, its centre anywhere in the image, cut at the border; 0 turns it off."""
    cutout_min_size: int | None = None
    """If given, height and width are drawn apart, each from this to cutout_size."""
    cutout_p: float = 1.0
    """Probability that an image is cut out."""
    cutout_holes: int = 1
    """Number of holes; they may overlap."""
    cutout_fill: str = "mean"
    """What the holes hold: 'mean' (the dataset's mean, rounded to 8 bits) or 'zero' (black)."""
    pipeline: str | None = None
    """A pipeline of Albumentations, as the JSON text of `A.save`, instead of all of the above: see `read_pipeline`."""

    def __post_init__(self) -> None:
        make_plain(self)
        require_int("crop_padding", self.crop_padding, 0, 16_383)
        require_choice("padding_mode", self.padding_mode, PADDING_MODES)
        require_bool("flip", self.flip)
        require_choice("flip_mode", self.flip_mode, FLIP_MODES)
        require_number("rotate_degrees", self.rotate_degrees, 0, 180)
        require_number("rotate_p", self.rotate_p, 0, 1)
        require_int("hue_shift", self.hue_shift, 0, 90)
        require_int("saturation_shift", self.saturation_shift, 0, 255)
        require_int("value_shift", self.value_shift, 0, 255)
        require_number("colour_p", self.colour_p, 0, 1)
        require_int("cutout_size", self.cutout_size, 0, 16_383)
        if self.cutout_min_size is not None and self.cutout_size:
            require_int("cutout_min_size", self.cutout_min_size, 1, self.cutout_size)
        others = ("crop_padding", "flip", "rotate_degrees", "shifts_colour", "cutout_size")
        if self.pipeline is not None and any(getattr(self, name) for name in others):
            raise UsageError("pipeline is given next to other augmentations; expected it alone: see read_pipeline")

    @property
    def smallest_cutout(self) -> int:
        """The smallest height and width of a hole."""
        return self.cutout_size if self.cutout_min_size is None or not self.cutout_size else self.cutout_min_size

    @property
    def shifts_colour(self) -> bool:
        """True if hue, saturation or value may change."""
        return bool(self.hue_shift or self.saturation_shift or self.value_shift)

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
