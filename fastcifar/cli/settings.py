"""Settings as options, made from their declarations in `fastcifar.config`. A recipe provides their defaults."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from fastcifar import config
from fastcifar.cli import options
from fastcifar.cli.options import Option, SettingOption, option
from fastcifar.cli.param_types import PATH, Parsed, value_as_text
from fastcifar.config import SETTINGS, AugmentConfig, TrainConfig, read_pipeline
from fastcifar.config.setting import settings_of
from fastcifar.io.paths import user_path

log = logging.getLogger(__name__)

AUGMENT = tuple(name for name, _, _ in settings_of(AugmentConfig) if name not in ("pipeline", "mixup", "cutmix"))
"""The augmentations that a pipeline replaces."""


def options_of(config_class: type, section: str = "", *, without: Iterable[str] = ()) -> list[Option[Any]]:
    """The options of a group of settings, in the order of their declaration, but for some names."""
    return [
        option(name, getattr(config_class, field), declared, section)
        for name, field, declared in settings_of(config_class)
        if name not in without
    ]


def _from_recipe(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Let the settings of the recipe be the defaults of the options, below flags and environment."""
    if value is not None and not context.resilient_parsing:
        from fastcifar import recipes

        recipe = recipes.load(value)
        context.default_map = {**(context.default_map or {}), **recipe.settings}
        # the path of a file, which the next command needs too
        context.meta["recipe"] = value if value in recipes.names() else user_path(value)
        return recipe.name
    return value


def _complete_recipes(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """The names of recipes, or files."""
    from fastcifar import recipes

    found = [CompletionItem(name) for name in recipes.names() if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


RECIPE = [
    click.option(
        "--recipe",
        is_eager=True,
        callback=_from_recipe,
        shell_complete=_complete_recipes,
        metavar="NAME",
        help="Start from these settings ('fastcifar recipes' lists them; or a .yaml file); flags override them.",
    )
]
MODEL = options_of(config.ModelConfig, "Model")
DATA = options_of(config.DataConfig, "Data", without=("data_dir", "loader"))
LOADER = options_of(config.DataConfig, "Data", without=("data_dir", "shuffle", "sampler", "val_size"))
OPTIMIZER = options_of(config.OptimizerConfig, "Optimizer and loss")
RANGE_TEST_OPTIMIZER = options_of(config.OptimizerConfig, "Optimizer and loss", without=("lr", "ema"))
SCHEDULE = options_of(config.ScheduleConfig, "Schedule")
AUGMENTATION = [
    *options_of(config.AugmentConfig, "Augmentation", without=("pipeline",)),
    click.option(
        "--augment",
        "pipeline",
        cls=SettingOption,
        section="Augmentation",
        type=PATH,
        help=SETTINGS["pipeline"][2].description,
    ),
]
DEVICE = options_of(
    config.RuntimeConfig, "Device and logging", without=("compile", "sync_bn", "deterministic", "log_every", "log")
)
RUNTIME = options_of(config.RuntimeConfig, "Device and logging", without=("device", "threads", "amp"))
INITIAL = options_of(TrainConfig, "Model", without=SETTINGS.keys() - {"init", "freeze_until"})
RUN = options_of(TrainConfig, "Run", without=("recipe", "batch_size", "seed", "init", "freeze_until"))
BATCH_SIZE = options_of(TrainConfig, "Run", without=SETTINGS.keys() - {"batch_size"})
SEED = options_of(TrainConfig, "Run", without=SETTINGS.keys() - {"seed"})
EXPERIMENT = [*BATCH_SIZE, *SEED, *MODEL, *INITIAL, options.data_dir, *DATA, *LOADER, *AUGMENTATION]
"""What `train` and `lr-find` have in common: network, images, batches."""
TRAINING = [*RECIPE, *RUN, *EXPERIMENT, *OPTIMIZER, *SCHEDULE, *DEVICE, *RUNTIME]
"""All settings of a training."""


def add(*groups: list[Option[Any]]) -> Option[Any]:
    """A decorator that gives a command the options of `groups`, in that order."""

    def decorate(command: Any) -> Any:
        for each in reversed([each for group in groups for each in group]):
            command = each(command)
        return command

    return decorate


def train_config(context: click.Context, values: dict[str, Any]) -> TrainConfig:
    """The configuration from the values of these options; settings that a command does not offer have their default.
    Warns of those that the user gave and that have no effect."""
    made = _train_config(context, values)
    if os.environ.get("RANK", "0") == "0":  # one process tells it
        unused = config.without_effect(made)
        for name in given_on_command_line(context, unused):
            log.warning("%s has no effect: %s", flags([name]), unused[name])
    return made


def _train_config(context: click.Context, values: dict[str, Any]) -> TrainConfig:
    pipeline = values.pop("pipeline", None)
    if pipeline is not None:
        if also := given_on_command_line(context, AUGMENT):
            raise click.UsageError(f"{flags(also)} cannot be combined with --augment, which replaces all of them")
        values = {key: value for key, value in values.items() if key not in AUGMENT}
        config = TrainConfig.from_stored(**values)
        mixing = {name: getattr(config.augment, name) for name in ("mixup", "cutmix")}
        return replace(config, augment=replace(read_pipeline(pipeline), **mixing))
    return TrainConfig.from_stored(**values)


def as_flags(context: click.Context, keys: Iterable[str]) -> list[str | os.PathLike[str]]:
    """What the user gave for `keys`, as arguments for `command_line`."""
    arguments: list[str | os.PathLike[str]] = []
    for param in context.command.params:
        if param.name not in keys:
            continue
        value = context.meta["recipe"] if param.name == "recipe" else context.params[param.name]
        if isinstance(param, click.Option) and param.is_bool_flag:
            arguments.append(param.opts[0] if value else param.secondary_opts[0])
            continue
        as_text = param.type.as_text if isinstance(param.type, Parsed) else value_as_text
        for each in value if param.multiple else [value]:
            arguments += [param.opts[0], each if isinstance(each, os.PathLike) else as_text(each)]
    return arguments


def given_on_command_line(context: click.Context, keys: Iterable[str]) -> list[str]:
    """Those of `keys` that were given on the command line."""
    return [key for key in keys if context.get_parameter_source(key) is ParameterSource.COMMANDLINE]


def flags(keys: Iterable[str]) -> str:
    """The flags of these settings, for a message."""
    return ", ".join("--" + {"pipeline": "augment"}.get(key, key).replace("_", "-") for key in keys)
