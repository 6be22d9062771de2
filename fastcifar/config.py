"""Settings as frozen dataclasses, checked when they are made."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from typing import Any

from fastcifar.checks import make_plain, require_bool, require_choice, require_float, require_int, require_number
from fastcifar.errors import UsageError
from fastcifar.files import read_settings

MODELS = ("resnet18", "small")
CROP_MODES = ("zero", "reflect")
CUTOUT_FILLS = ("mean", "zero")
FLIP_MODES = ("random", "alternating")
SHUFFLES = ("full", "window", "none")
LOADERS = ("auto", "resident", "ffcv", "albumentations")
SCHEDULES = ("plateau", "onecycle", "cosine", "step", "multistep", "none")
MONITORS = ("loss", "accuracy")
ANNEALS = ("cos", "linear")
LR_MODES = ("exponential", "linear")
LR_SUGGESTIONS = ("valley", "steepest", "minimum")
OPTIMIZERS = ("sgd", "adamw", "muon")
NORMS = ("batch", "layer", "group")
TTAS = ("none", "flip", "flip-shift")
AMP_MODES = ("auto", "bf16", "fp16", "off")
MAX_SEED = 2**63 - 1


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
        make_plain(self)
        require_int("crop_padding", self.crop_padding, 0, 16_383)
        require_choice("crop_mode", self.crop_mode, CROP_MODES)
        require_bool("flip", self.flip)
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
    raw = read_settings(path, "pipeline", "a file that albumentations.save wrote", most_kib=1024, key="transform")
    try:
        return replace(NO_AUGMENT, pipeline=json.dumps(raw))
    except (TypeError, ValueError, RecursionError) as error:  # dates, and keys that are no names, in YAML
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{os.fspath(path)}: not a pipeline ({reason}); expected a file that albumentations.save wrote"
        ) from error


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and how it is built."""

    name: str = "resnet18"
    """One of MODELS, a name of `torchvision.models`, or 'package.module:function' of your own."""
    norm: str = "batch"
    """'batch', 'layer' (one group: over all channels and places of an image) or 'group' (of 16 channels); resnet18."""
    dropout: float = 0.0
    """Probability that an input of the last layer is dropped; resnet18 and small."""
    last_stride: int = 2
    """Stride of the last stage; 1 gives 8x8 maps instead of 4x4; resnet18."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.]+(:\w+)?", self.name):
            raise UsageError(
                f"model is {self.name!r}; expected one of: {', '.join(MODELS)}, a name of torchvision.models, "
                "or package.module:function"
            )
        require_choice("norm", self.norm, NORMS)
        require_float("dropout", self.dropout, 0.0, high=1.0)
        require_int("last_stride", self.last_stride, 1, 2)

    @property
    def names_code(self) -> bool:
        """True if making the network would run code that `name` names: only the user may ask for that, no file."""
        return ":" in self.name

    @property
    def label(self) -> str:
        """The name without the package: for folders."""
        return self.name.rpartition(":")[2]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a training run does. Stored in the run folder as config.yaml."""

    recipe: str | None = None
    """Name of the recipe that these settings began as."""
    data_dir: str = "data"
    """Folder with train.beton and test.beton."""
    model: str = "resnet18"
    """Name of the network: see `ModelConfig`."""
    norm: str = "batch"
    """Normalisation in the network: see `ModelConfig`."""
    dropout: float = 0.0
    """Dropout before the last layer: see `ModelConfig`."""
    last_stride: int = 2
    """Stride of the last stage: see `ModelConfig`."""
    epochs: int = 50
    """Passes over the training images."""
    batch_size: int = 512
    """Images in one step, of all processes together; the last, partial batch of an epoch is dropped."""
    optimizer: str = "sgd"
    """'sgd', 'adamw', or 'muon' (for filters and matrices; AdamW with `rest_lr` for the rest)."""
    lr: float | str = 0.1
    """Learning rate: the highest that the schedule reaches; 'auto' runs the range test first."""
    rest_lr: float = 0.01
    """Learning rate of AdamW for what Muon does not update, at the peak of the schedule."""
    unit_filters: bool = False
    """muon: scale each filter bank to the norm sqrt(filters) before a step; where each is normalised after."""
    muon_steps: int = 5
    """muon: Newton-Schulz steps that make an update orthogonal; each costs time, and 3 do in a short training."""
    momentum: float = 0.9
    """Momentum of SGD and Muon."""
    nesterov: bool = True
    """Nesterov's momentum, where momentum is above 0."""
    weight_decay: float = 5e-4
    """L2 penalty (SGD), decoupled decay (AdamW, Muon)."""
    decay_all: bool = True
    """Weight decay and L1 on biases and normalisation too, not only on filters and matrices."""
    l1: float = 0.0
    """L1 penalty: its gradient is added to that of the loss; the loss that is reported does not hold it."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes while training (Szegedy et al. 2016)."""
    clip_norm: float = 0.0
    """Gradients are scaled down to this norm, all parameters together; 0: they are not."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is scored; 0: none."""
    sched: str = "plateau"
    """'plateau', 'onecycle', 'cosine', 'step', 'multistep' or 'none'."""
    factor: float = 0.2
    """plateau, step, multistep: what the learning rate is multiplied by."""
    patience: int = 3
    """plateau: epochs without an improvement before the rate falls."""
    monitor: str = "loss"
    """plateau: 'loss' or 'accuracy', of the validation images, or of training if none are held out."""
    min_lr: float = 0.0
    """plateau, cosine: the rate does not fall below this."""
    step_size: int = 10
    """step: epochs between two falls."""
    milestones: tuple[int, ...] = ()
    """multistep: after how many epochs the rate falls."""
    pct_start: float = 0.3
    """onecycle: share of the steps in which the rate rises."""
    div_factor: float = 25.0
    """onecycle: the rate starts at lr / div_factor."""
    final_div_factor: float = 1e4
    """onecycle: the rate ends at lr / div_factor / final_div_factor."""
    anneal: str = "cos"
    """onecycle: 'cos' or 'linear'."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises in a line from a hundredth; onecycle has its own."""
    augment: AugmentConfig = AugmentConfig()
    """What happens to training images."""
    progressive: tuple[tuple[int, float], ...] = ()
    """(side, until): images are resized to side x side until that share of the steps is done."""
    tta: str = "none"
    """Test-time augmentation of the last score, beside the plain one: 'none', 'flip', 'flip-shift'."""
    loader: str = "auto"
    """Which loader feeds the network."""
    shuffle: str = "full"
    """'full', or 'window' for betons larger than memory."""
    device: str = "auto"
    """'auto' (CUDA, else MPS, else CPU), or a torch device."""
    amp: str = "auto"
    """Autocast: 'bf16', 'fp16' (with loss scaling), 'off', or 'auto' (bf16 where the device is fast at it)."""
    compile: bool = False
    """torch.compile the network: worth its half minute in long runs on a GPU, not on a CPU."""
    sync_bn: bool = False
    """Batch normalisation over the images of all processes."""
    val_size: int | None = None
    """Training images held out for validation, the same number of each class; 0 trains on all; None is a tenth."""
    seed: int = 0
    """Decides initial weights, order, augmentation and the validation images."""
    deterministic: bool = False
    """Use only algorithms that give the same result every time."""
    max_steps: int | None = None
    """End after this many steps, evaluation included."""
    log_every: int = 0
    """Log the mean loss of every so many steps; 0: of epochs only."""

    def __post_init__(self) -> None:
        make_plain(self)
        object.__setattr__(self, "milestones", _tuple("milestones", self.milestones))
        object.__setattr__(
            self, "progressive", tuple(_tuple("progressive", p) for p in _tuple("progressive", self.progressive))
        )
        _ = self.network
        require_int("epochs", self.epochs, 1)
        require_int("batch_size", self.batch_size, 2)  # batch normalisation has no variance of one image
        require_choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.lr != "auto":
            require_float("lr", self.lr, 0.0, above=True)
        require_float("rest_lr", self.rest_lr, 0.0, above=True)
        require_int("muon_steps", self.muon_steps, 1, 20)
        require_float("momentum", self.momentum, 0.0, high=1.0)
        for name in ("weight_decay", "l1", "clip_norm", "min_lr", "warmup_epochs"):
            require_float(name, getattr(self, name), 0.0)
        for name in ("label_smoothing", "ema"):
            require_float(name, getattr(self, name), 0.0, high=1.0)
        for name in ("unit_filters", "nesterov", "decay_all", "compile", "sync_bn", "deterministic"):
            require_bool(name, getattr(self, name))
        self._check_schedule()
        require_choice("tta", self.tta, TTAS)
        require_choice("loader", self.loader, LOADERS)
        require_choice("shuffle", self.shuffle, ("full", "window"))
        require_choice("amp", self.amp, AMP_MODES)
        if self.val_size is not None:
            require_int("val_size", self.val_size, 0)
        require_int("seed", self.seed, 0, MAX_SEED)
        if self.max_steps is not None:
            require_int("max_steps", self.max_steps, 1)
        require_int("log_every", self.log_every, 0)

    def _check_schedule(self) -> None:
        require_choice("sched", self.sched, SCHEDULES)
        require_float("factor", self.factor, 0.0, above=True, high=1.0)
        require_int("patience", self.patience, 0)
        require_choice("monitor", self.monitor, MONITORS)
        require_int("step_size", self.step_size, 1)
        for number in self.milestones:
            require_int("milestones", number, 1)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UsageError(f"milestones is {list(self.milestones)}; expected each epoch once, in rising order")
        if self.sched == "multistep" and not self.milestones:
            raise UsageError("sched is 'multistep' without milestones; expected epochs, such as 15,25")
        if self.sched == "onecycle" and self.warmup_epochs:
            raise UsageError("warmup_epochs is given with sched 'onecycle'; it warms up by itself: see pct_start")
        require_float("pct_start", self.pct_start, 0.0, above=True, high=1.0)
        require_float("div_factor", self.div_factor, 1.0)
        require_float("final_div_factor", self.final_div_factor, 1.0)
        require_choice("anneal", self.anneal, ANNEALS)
        if not isinstance(self.lr, str) and self.min_lr > self.lr:
            raise UsageError(f"min_lr is {self.min_lr:g}, above lr, {self.lr:g}; expected less")
        before = 0.0
        for stage in self.progressive:
            if len(stage) != 2:
                raise UsageError(f"progressive is {self.progressive}; expected pairs of side and share, such as 24:0.5")
            require_int("the side in progressive", stage[0], 8, 16_383)
            require_number("the share in progressive", stage[1], before, 1.0)
            before = stage[1]

    @property
    def network(self) -> ModelConfig:
        """The settings of the network alone."""
        return ModelConfig(name=self.model, norm=self.norm, dropout=self.dropout, last_stride=self.last_stride)


def _tuple(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{name} is {value!r}; expected a list")
    return tuple(value)
