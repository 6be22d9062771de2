"""Settings as frozen dataclasses, checked when they are made."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from typing import Any

from fastcifar.errors import UsageError

MODELS = ("resnet18", "small")
CROP_MODES = ("zero", "reflect")
CUTOUT_FILLS = ("mean", "zero")
FLIP_MODES = ("random", "alternating")
SHUFFLES = ("full", "window", "none")
LOADERS = ("auto", "resident", "ffcv", "albumentations")
SCHEDULES = ("plateau", "cosine", "none")
AMP_MODES = ("auto", "bf16", "off")
MAX_SEED = 2**63 - 1


def require_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise UsageError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise UsageError(f"{name} is {value!r}; expected one of: {', '.join(allowed)}")


def require_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise UsageError unless `value` is a whole number in low..high."""
    span = f"{low} or more" if high is None else f"{low}..{high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is {value!r}; expected a whole number, {span}")
    if value < low or (high is not None and value > high):
        raise UsageError(f"{name} is {value}; expected {span}")


def require_float(name: str, value: Any, low: float, *, above: bool = False, high: float = math.inf) -> None:
    """Raise UsageError unless `value` is finite, at least `low` (above it if `above`) and below `high`."""
    kind = f"a number {'above' if above else 'of at least'} {low:g}"
    kind += "" if high == math.inf else f" and below {high:g}"
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or value < low or (above and value == low) or value >= high:
        raise UsageError(f"{name} is {value}; expected {kind}")


def require_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise UsageError unless `value` is a number in low..high."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}; expected a number, {low:g}..{high:g}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What may happen to a training image. What does happen is drawn by `fastcifar.augment.draws`."""

    crop_padding: int = 4
    """Pixels added on each side before a crop of the original size; 0 turns the crop off."""
    crop_mode: str = "zero"
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
        require_int("crop_padding", self.crop_padding, 0, 16_383)
        require_choice("crop_mode", self.crop_mode, CROP_MODES)
        if not isinstance(self.flip, bool):
            raise UsageError(f"flip is {self.flip!r}; expected True or False")
        require_choice("flip_mode", self.flip_mode, FLIP_MODES)
        require_number("rotate_degrees", self.rotate_degrees, 0, 180)
        require_number("rotate_p", self.rotate_p, 0, 1)
        require_int("hue_shift", self.hue_shift, 0, 90)
        require_int("saturation_shift", self.saturation_shift, 0, 255)
        require_int("value_shift", self.value_shift, 0, 255)
        require_number("colour_p", self.colour_p, 0, 1)
        require_int("cutout_size", self.cutout_size, 0, 16_383)
        if self.cutout_min_size is not None:
            require_int("cutout_min_size", self.cutout_min_size, 1, max(self.cutout_size, 1))
        require_number("cutout_p", self.cutout_p, 0, 1)
        require_int("cutout_holes", self.cutout_holes, 1, 64)
        require_choice("cutout_fill", self.cutout_fill, CUTOUT_FILLS)
        others = ("crop_padding", "flip", "rotate_degrees", "shifts_colour", "cutout_size")
        if self.pipeline is not None and any(getattr(self, name) for name in others):
            raise UsageError("pipeline is given beside other choices; expected it alone: see read_pipeline")

    @property
    def smallest_cutout(self) -> int:
        """The least height and width of a hole."""
        return self.cutout_size if self.cutout_min_size is None else self.cutout_min_size

    @property
    def shifts_colour(self) -> bool:
        """True if hue, saturation or value may change."""
        return bool(self.hue_shift or self.saturation_shift or self.value_shift)

    def check_fits(self, image_shape: tuple[int, int, int]) -> None:
        """Raise UsageError if these settings make no sense for images of `image_shape` (H, W, 3)."""
        height, width, _ = image_shape
        if max(height, width) > 16_383:
            raise UsageError(f"the images are {height}x{width}; expected at most 16383x16383 (choices have 16 bits)")
        smallest = min(height, width)
        if self.cutout_size > smallest:
            raise UsageError(
                f"cutout_size is {self.cutout_size}; the images are {height}x{width}: expected 0..{smallest}"
            )
        if self.crop_mode == "reflect" and self.crop_padding >= smallest:
            raise UsageError(
                f"crop_padding is {self.crop_padding} with crop_mode 'reflect'; "
                f"the images are {height}x{width}: expected 0..{smallest - 1}"
            )


NO_AUGMENT = AugmentConfig(crop_padding=0, flip=False, cutout_size=0)


def read_pipeline(path: str | os.PathLike[str]) -> AugmentConfig:
    """The augmentation of a file that Albumentations' `A.save` wrote, JSON or YAML. Raises UsageError if it cannot be
    read; whether Albumentations can use it is found out by the loader."""
    import yaml

    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("it is no file")
        if os.path.getsize(path) > 2**20:
            raise ValueError("it has over a MiB")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it has aliases, which can stand for more than the memory holds")
        raw = yaml.safe_load(text)  # JSON too
        if not isinstance(raw, dict) or not isinstance(raw.get("transform"), dict):
            raise ValueError("it has no 'transform'")
        return replace(NO_AUGMENT, pipeline=json.dumps(raw))
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UsageError(
            f"{os.fspath(path)}: not a pipeline ({reason}); expected a file that albumentations.save wrote"
        ) from error


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a training run does. Stored in the run folder as config.yaml."""

    data_dir: str = "data"
    """Folder with train.beton and test.beton."""
    model: str = "resnet18"
    """Name of the network."""
    epochs: int = 50
    """Passes over the training images."""
    batch_size: int = 512
    """Images in one step; the last, partial batch of an epoch is dropped."""
    lr: float = 0.1
    """Learning rate that the schedule starts from."""
    momentum: float = 0.9
    """Momentum of SGD (Nesterov's, where it is above 0)."""
    weight_decay: float = 5e-4
    """L2 penalty on all weights."""
    sched: str = "plateau"
    """'plateau' (x 0.2 when the validation loss has not improved for 3 epochs), 'cosine' (to 0, per step), 'none'."""
    augment: AugmentConfig = AugmentConfig()
    """What happens to training images."""
    loader: str = "auto"
    """Which loader feeds the network."""
    shuffle: str = "full"
    """'full', or 'window' for betons larger than memory."""
    device: str = "auto"
    """'auto' (CUDA, else MPS, else CPU), or a torch device."""
    amp: str = "auto"
    """Autocast: 'bf16', 'off', or 'auto' (bf16 where the device is fast at it)."""
    val_size: int | None = None
    """Training images held out for validation, the same number of each class; 0 trains on all; None is a tenth."""
    seed: int = 0
    """Decides initial weights, order, augmentation and the validation images."""
    deterministic: bool = False
    """Use only algorithms that give the same result every time."""
    max_steps: int | None = None
    """End after this many steps, evaluation included."""

    def __post_init__(self) -> None:
        require_choice("model", self.model, MODELS)
        require_int("epochs", self.epochs, 1)
        require_int("batch_size", self.batch_size, 2)  # batch normalisation has no variance of one image
        require_float("lr", self.lr, 0.0, above=True)
        require_float("momentum", self.momentum, 0.0, high=1.0)
        require_float("weight_decay", self.weight_decay, 0.0)
        require_choice("sched", self.sched, SCHEDULES)
        require_choice("loader", self.loader, LOADERS)
        require_choice("shuffle", self.shuffle, ("full", "window"))
        require_choice("amp", self.amp, AMP_MODES)
        if self.val_size is not None:
            require_int("val_size", self.val_size, 0)
        require_int("seed", self.seed, 0, MAX_SEED)
        if self.max_steps is not None:
            require_int("max_steps", self.max_steps, 1)
