"""`TrainConfig`, everything that decides what a training run does, and its groups `data` and `runtime`."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar

from fastcifar.config.augment import AugmentConfig
from fastcifar.config.model import ModelConfig
from fastcifar.config.optimizer import OptimizerConfig, default_lr
from fastcifar.config.schedule import ScheduleConfig
from fastcifar.config.setting import (
    Choice,
    Config,
    DeviceName,
    Integer,
    Names,
    Number,
    Setting,
    SizesUntil,
    Switch,
    Text,
    require_known,
    setting,
    settings_of,
)
from fastcifar.errors import UsageError
from fastcifar.io.checks import require_utf8
from fastcifar.io.paths import data_folder, user_path

LOGGERS = ("tensorboard", "wandb", "trackio")
LOADERS = ("auto", "resident", "ffcv", "albumentations")
SHUFFLES = ("full", "window", "none")
SAMPLERS = ("none", "balanced")
SPLITS = ("test", "val")
TTA_MODES = ("none", "flip", "flip-shift")
MAX_SEED = 2**63 - 1
MAX_MINUTES = 525_600.0  # a year
CHANGEABLE = (
    "epochs",
    "max_steps",
    "early_stop",
    "data_dir",
    "device",
    "threads",
    "loader",
    "amp",
    "compile",
    "log_every",
    "log",
)
"""Settings that may differ when a run is resumed; the others are the run's own."""
LENGTH = ("epochs", "max_steps", "early_stop")
"""Those of them that a run of a group keeps, too: its runs are compared."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Which images, and how they reach the network."""

    data_dir: str | os.PathLike[str] = setting("data", Text(path=True), "Folder with train.beton and test.beton.")
    loader: str = setting("auto", Choice(LOADERS), "What delivers the batches; all deliver the same.")
    shuffle: str = setting("full", Choice(SHUFFLES[:2]), "window: for datasets larger than memory.")
    sampler: str = setting(
        "none",
        Choice(SAMPLERS),
        "none: each image once in an epoch; balanced: as many images, each class equally often.",
    )
    val_size: int | None = setting(
        None,
        Integer(0),
        "Training images held out for validation, the same share of each class; 0: none.",
        default_text="a tenth",
    )

    def check(self) -> None:
        object.__setattr__(self, "data_dir", str(data_folder(self.data_dir)))
        require_utf8("data_dir", str(self.data_dir))


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Config):
    """Where and how a run computes; what it logs."""

    device: str = setting("auto", DeviceName(), "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps.")
    threads: int | None = setting(
        None, Integer(1, 1_024), "Threads on the CPU.", default_text="the CPUs available to this process"
    )
    amp: str = setting(
        "auto",
        Choice(("auto", "bf16", "fp16", "off")),
        "Autocast; auto: bf16 where the device is fast at it; fp16, for older GPUs, scales the loss.",
    )
    compile: bool = setting(
        False, Switch("--no-compile"), "Compile the network (torch.compile); for long runs on a GPU."
    )
    sync_bn: bool = setting(
        False, Switch("--no-sync-bn"), "With several processes: batch normalisation over the images of all."
    )
    deterministic: bool = setting(
        False, Switch("--no-deterministic"), "Bit-identical results on the same machine, with the same threads."
    )
    log_every: int = setting(0, Integer(0), "Log the mean loss every so many steps; 0: once per epoch.")
    log: tuple[str, ...] = setting(
        (), Names(LOGGERS, can_be_empty=True), f"Also log to dashboards, of {', '.join(LOGGERS)}; may be repeated."
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Everything that decides what a training run does. Stored in the run folder as config.yaml.

    Every setting has one name, unique over all groups: that of its field, but `model`, `optimizer` and `sched` for the
    three fields `name`. See `from_settings`.

    Examples:
        >>> config = TrainConfig.from_settings(model="small", epochs=8, optimizer="muon", cutout_size=0)
        >>> config.optimizer.name, config.augment.cutout_size
        ('muon', 0)
        >>> longer = config.with_settings(epochs=16)
        >>> longer.epochs, config.epochs
        (16, 8)
    """

    by_name: ClassVar[str] = "; TrainConfig.from_settings takes all settings by name"

    recipe: str | None = setting(None, Text(), "Name of the recipe that the settings began as.")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    init: str | os.PathLike[str] | None = setting(
        None,
        Text(path=True),
        "Start from these weights: a run, or a file (.safetensors; or a state_dict saved by torch).",
    )
    freeze_until: str | None = setting(
        None,
        Text("LAYER"),
        "Train only this layer and those after it, e.g. layer4, or head for the last layer alone.",
    )
    epochs: int = setting(50, Integer(1), "Passes over the training images.")
    # batch normalisation has no variance of one image
    batch_size: int = setting(512, Integer(2), "Images per step, over all processes; training drops the last batch.")
    max_steps: int | None = setting(None, Integer(1), "Stop after this many steps, then evaluate.")
    max_minutes: float | None = setting(
        None,
        Number(0.0, MAX_MINUTES, above=True),
        "Train the steps that fit in this time, at most those of epochs and max_steps; fixed at the start.",
        default_text="no limit",
    )
    early_stop: int | None = setting(
        None, Integer(1), "Stop after this many epochs without a better validation accuracy.", default_text="never"
    )
    progressive: tuple[tuple[int, float], ...] = setting(
        (), SizesUntil(), "Progressive resizing: side:until, where until is a share of the steps."
    )
    tta: str = setting("none", Choice(TTA_MODES), "Test-time augmentation, reported next to the plain test accuracy.")
    seed: int = setting(0, Integer(0, MAX_SEED), "Determines weights, order, augmentation and validation images.")

    def check(self) -> None:
        if self.init is not None:
            object.__setattr__(self, "init", str(user_path(self.init, "init")))
            require_utf8("init", str(self.init))
        min_lr, optimizer = self.schedule.min_lr, self.optimizer
        if optimizer.lr != "auto" and min_lr > self.peak_lr:
            raise UsageError(f"min_lr is {min_lr:g}, above lr, {self.peak_lr:g}; expected at most {self.peak_lr:g}")
        aux_lr = min(optimizer.aux_lr, optimizer.aux_lr if optimizer.bias_lr is None else optimizer.bias_lr)
        if optimizer.name == "muon" and min_lr > aux_lr:
            raise UsageError(
                f"min_lr is {min_lr:g}, above the rate of the auxiliary optimizer, {aux_lr:g}; "
                f"expected at most {aux_lr:g}"
            )

    @classmethod
    def from_settings(cls, **values: Any) -> TrainConfig:
        """The configuration with these settings, by name; the others have their defaults.

        Raises UsageError for an unknown name or a value that is not allowed; also for a recipe by its name alone, which
        `fastcifar.recipes.load` reads.
        """
        return cls().with_settings(**values)

    @classmethod
    def from_stored(cls, *, recipe: str | None = None, **values: Any) -> TrainConfig:
        """`from_settings`, of values that have those of their recipe among them: in a recipe, config.yaml, flags."""
        return replace(cls.from_settings(**values), recipe=recipe)

    def to_settings(self) -> dict[str, Any]:
        """All settings by name, as in config.yaml: plain values, tuples as lists."""
        return {
            name: _plain(getattr(self if group is None else getattr(self, group), key))
            for name, (group, key, _) in SETTINGS.items()
        }

    def with_settings(self, **values: Any) -> TrainConfig:
        """A copy with these settings changed, by name. Raises UsageError, see `from_settings`."""
        require_known(values, SETTINGS)
        recipe = values.get("recipe")
        if isinstance(recipe, str) and recipe != self.recipe and SETTINGS.keys() - values.keys():
            raise UsageError(
                f"recipe is {recipe!r}, which only names where settings come from; start from the recipe itself: "
                f"'from fastcifar import recipes', then recipes.load({recipe!r}).config.with_settings(…)"
            )
        by_group: dict[str | None, dict[str, Any]] = {}
        for name, value in values.items():
            group, key, _ = SETTINGS[name]
            by_group.setdefault(group, {})[key] = value
        own = by_group.pop(None, {})
        groups = {str(group): replace(getattr(self, str(group)), **changed) for group, changed in by_group.items()}
        return replace(self, **own, **groups)

    @property
    def peak_lr(self) -> float:
        """The learning rate as a number: `lr`, or the default of the network and the optimizer. Not for 'auto'."""
        lr = self.optimizer.lr
        assert not isinstance(lr, str)
        return default_lr(self.model, self.optimizer.name) if lr is None else lr


GROUPS: dict[str, Any] = {each.name: each.default_factory for each in fields(TrainConfig) if each.default is MISSING}
SETTINGS: dict[str, tuple[str | None, str, Setting]] = {
    name: (group, key, declared)
    for group, config_class in ((None, TrainConfig), *GROUPS.items())
    for name, key, declared in settings_of(config_class)
}
"""By name: its group in TrainConfig (None: TrainConfig itself), its field there, its declaration."""


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
