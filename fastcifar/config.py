"""Settings as frozen dataclasses, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastcifar.errors import UsageError

MODELS = ("resnet18", "small")
CROP_MODES = ("zero", "reflect")
CUTOUT_FILLS = ("mean", "zero")
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


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What may happen to a training image. What does happen is drawn by `fastcifar.augment.draws`."""

    crop_padding: int = 4
    """Pixels added on each side before a crop of the original size; 0 turns the crop off."""
    crop_mode: str = "zero"
    """What the padding holds: 'zero' (black) or 'reflect' (the image mirrored, edge not repeated)."""
    flip: bool = True
    """Mirror left to right, with probability 0.5."""
    cutout_size: int = 8
    """Side of the square that is blanked, its centre anywhere in the image, cut at the border; 0 turns it off."""
    cutout_fill: str = "mean"
    """What the square holds: 'mean' (the dataset's mean, rounded to 8 bits) or 'zero' (black)."""

    def __post_init__(self) -> None:
        require_int("crop_padding", self.crop_padding, 0, 16_383)
        require_choice("crop_mode", self.crop_mode, CROP_MODES)
        if not isinstance(self.flip, bool):
            raise UsageError(f"flip is {self.flip!r}; expected True or False")
        require_int("cutout_size", self.cutout_size, 0, 16_383)
        require_choice("cutout_fill", self.cutout_fill, CUTOUT_FILLS)

    def check_fits(self, image_shape: tuple[int, int, int]) -> None:
        """Raise UsageError if these settings make no sense for images of `image_shape` (H, W, 3)."""
        height, width, _ = image_shape
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
