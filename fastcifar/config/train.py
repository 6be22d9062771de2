"""Everything that decides what a training run does, in groups."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fastcifar.config.augment import AugmentConfig
from fastcifar.config.data import DataConfig
from fastcifar.config.model import ModelConfig
from fastcifar.config.optimizer import OptimizerConfig, default_lr
from fastcifar.config.runtime import RuntimeConfig
from fastcifar.config.schedule import ScheduleConfig
from fastcifar.config.setting import Choice, Config, Integer, Setting, SizesUntil, Text, setting, settings_of
from fastcifar.errors import UsageError

TTA_MODES = ("none", "flip", "flip-shift")
MAX_SEED = 2**63 - 1
GROUPS: dict[str, type[Config]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "augment": AugmentConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "runtime": RuntimeConfig,
}
CHANGEABLE = ("epochs", "max_steps", "data_dir", "device", "threads", "loader", "amp", "compile", "log_every")
"""Settings that may differ when a run is resumed; the others are the run's own."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Everything that decides what a training run does. Stored in the run folder as config.yaml.

    Every setting has one name, unique over all groups: that of its field, but `model`, `optimizer` and `sched` for the
    three fields `name`. See `from_settings`.
    """

    recipe: str | None = setting(None, Text(), "Name of the recipe that the settings began as.")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    epochs: int = setting(50, Integer(1), "Passes over the training images.")
    # batch normalisation has no variance of one image
    batch_size: int = setting(512, Integer(2), "Images per step, over all processes; training drops the last batch.")
    max_steps: int | None = setting(None, Integer(1), "Stop after this many steps, with evaluation.")
    progressive: tuple[tuple[int, float], ...] = setting(
        (), SizesUntil(), "Smaller images at first: side:until, where until is a share of the steps."
    )
    tta: str = setting("none", Choice(TTA_MODES), "Test-time augmentation, reported next to the plain test accuracy.")
    seed: int = setting(0, Integer(0, MAX_SEED), "Determines weights, order, augmentation and validation images.")

    def check(self) -> None:
        min_lr, optimizer = self.schedule.min_lr, self.optimizer
        if optimizer.lr != "auto" and min_lr > self.peak_lr:
            raise UsageError(f"min_lr is {min_lr:g}, above lr, {self.peak_lr:g}; expected less")
        aux_lr = min(optimizer.aux_lr, optimizer.aux_lr if optimizer.bias_lr is None else optimizer.bias_lr)
        if optimizer.name == "muon" and min_lr > aux_lr:
            raise UsageError(
                f"min_lr is {min_lr:g}, above the rate of the auxiliary optimizer, {aux_lr:g}; expected less"
            )

    @classmethod
    def from_settings(cls, **values: Any) -> TrainConfig:
        """The configuration with these settings, by name; the others have their defaults.

        Raises UsageError for an unknown name or a value that is not allowed.
        """
        return replace(cls(), **_grouped(cls(), values))

    def to_settings(self) -> dict[str, Any]:
        """All settings by name, as in config.yaml: plain values, tuples as lists."""
        return {name: _plain(getattr(_holder(self, group), key)) for name, (group, key, _) in SETTINGS.items()}

    def with_settings(self, **values: Any) -> TrainConfig:
        """A copy with these settings changed, by name. Raises UsageError, see `from_settings`."""
        return replace(self, **_grouped(self, values))

    @property
    def peak_lr(self) -> float:
        """The learning rate as a number: `lr`, or the default of the network and the optimizer. Not for 'auto'."""
        lr = self.optimizer.lr
        assert not isinstance(lr, str)
        return default_lr(self.model, self.optimizer.name) if lr is None else lr


def _all_settings() -> dict[str, tuple[str | None, str, Setting]]:
    declared: dict[str, tuple[str | None, str, Setting]] = {}
    for each in fields(TrainConfig):
        group = each.name if each.name in GROUPS else None
        own = settings_of(GROUPS[each.name]) if group else [s for s in settings_of(TrainConfig) if s[1] == each.name]
        declared |= {name: (group, key, found) for name, key, found in own}
    return declared


SETTINGS = _all_settings()
"""By name: its group in TrainConfig (None: TrainConfig itself), its field there, its declaration."""


def require_known(names: Any, known: Any = SETTINGS) -> None:
    """Raise UsageError if one of `names` is not the name of a setting."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"unknown setting {name!r}{hint}")


def _grouped(config: TrainConfig, values: dict[str, Any]) -> dict[str, Any]:
    """The fields of TrainConfig that these settings change."""
    require_known(values)
    changed: dict[str, Any] = {}
    by_group: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, key, _ = SETTINGS[name]
        (changed if group is None else by_group.setdefault(group, {}))[key] = value
    return changed | {group: replace(getattr(config, group), **own) for group, own in by_group.items()}


def _holder(config: TrainConfig, group: str | None) -> Any:
    return config if group is None else getattr(config, group)


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
