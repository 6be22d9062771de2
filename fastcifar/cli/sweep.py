"""`fastcifar sweep`: runs for each combination of some settings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastcifar.cli import options, settings
from fastcifar.cli.command import normalised, options_by_name
from fastcifar.cli.dry_run import show_sweep_dry_run
from fastcifar.cli.param_types import SEEDS, SEEDS_HELP, Parsed
from fastcifar.cli.settings import flags, given_on_command_line
from fastcifar.config import SETTINGS, TrainConfig, require_known, without_effect
from fastcifar.errors import UsageError

if TYPE_CHECKING:
    from fastcifar.runs.group import Member


def _values(text: str) -> tuple[str, tuple[Any, ...]]:
    """('lr', (0.02, 0.05)) of `lr=0.02,0.05`; values that are lists are separated by semicolons."""
    name, _, values = text.partition("=")
    name = name.strip().lstrip("-")
    if not name or not values.strip():
        raise ValueError
    return name, tuple(part.strip() for part in values.split(";" if ";" in values else ","))


def _as_text(chosen: tuple[str, tuple[str, ...]]) -> str:
    name, values = chosen
    return f"{name}={(';' if any(',' in value for value in values) else ',').join(values)}"


VALUES = Parsed("setting=value,…", _values, "a setting and its values, e.g. lr=0.02,0.05,0.1", _as_text)


@click.command(
    cls=options.SettingsCommand,
    short_help="Train each combination of some settings, and compare them.",
    common=(
        "chosen",
        "seeds",
        "trials",
        "recipe",
        "model",
        "epochs",
        "val_size",
        "data_dir",
        "device",
        "seed",
        "name",
        "dry_run",
    ),
)
@click.option(
    "--set",
    "chosen",
    type=VALUES,
    multiple=True,
    metavar="SETTING=VALUE,…",
    help="A setting and its values; may be repeated: each combination is trained. Values that are lists are separated "
    "by semicolons.",
)
@click.option("--seeds", type=SEEDS, show_default="that of --seed", help=SEEDS_HELP)
@click.option("--trials", type=click.IntRange(1), help="Train only so many combinations, chosen at random by --seed.")
@settings.add(settings.TRAINING)
@click.option("--name", default="sweep", show_default=True, help="Name of the folder.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the combinations, and the expected time of each, measured over a few steps; write nothing.",
)
@options.runs_dir
@options.as_json
@click.pass_context
def sweep(
    context: click.Context,
    /,
    chosen: tuple[tuple[str, tuple[str, ...]], ...],
    seeds: tuple[int, ...] | None,
    trials: int | None,
    name: str,
    dry_run: bool,
    runs_dir: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Train each combination of some settings, and compare them on the validation images.

    The effect of each setting and the best combination are printed, and reported in report.html. The test images are
    scored once, for the best combination. 'fastcifar train --resume NAME' resumes a sweep.
    """
    config = settings.train_config(context, dict(values))

    from fastcifar.cli.groups import train_and_print
    from fastcifar.runs.group import create_group
    from fastcifar.runs.sweep import require_validation, sweep_members

    require_validation(config)
    if seeds is None:
        seeds = (config.seed,)
    elif trials is None and given_on_command_line(context, ["seed"]):
        raise click.UsageError(
            "--seeds cannot be combined with --seed, except with --trials, which --seed chooses", context
        )
    swept: dict[str, tuple[Any, ...]] = {}
    for written, texts in chosen:
        name_of_setting = _setting(context, written)
        if name_of_setting in swept:
            raise click.UsageError(f"--set {name_of_setting} is given twice; expected all its values at once", context)
        if given_on_command_line(context, [name_of_setting]):
            raise click.UsageError(f"{flags([name_of_setting])} is also in --set; expected one of them", context)
        swept[name_of_setting] = _parsed(context, name_of_setting, texts)
    members = sweep_members(swept, seeds, trials=trials, seed=config.seed)
    _require_effect(config, swept, members)
    if dry_run:
        show_sweep_dry_run(context, config, members, as_json)
        return
    train_and_print(context, create_group(runs_dir, name, "sweep", config, members), as_json)


def _require_effect(config: TrainConfig, swept: Iterable[str], members: Iterable[Member]) -> None:
    """Raise UsageError for a setting that changes none of the runs."""
    unused = [without_effect(config.with_settings(**member.settings)) for member in members]
    for name in swept:
        if all(name in each for each in unused):
            raise UsageError(f"--set {name} has no effect: {unused[0][name]}")


def _setting(context: click.Context, name: str) -> str:
    """The setting of this name, or other name, of an option."""
    flag = normalised(f"--{name}")
    param = options_by_name(context.command).get(flag)
    if param is not None and flag in param.secondary_opts:
        raise click.UsageError(f"--set {name}: write {param.name}=true or {param.name}=false", context)
    return param.name if param is not None and param.name in SETTINGS else name


def _parsed(context: click.Context, name: str, texts: tuple[str, ...]) -> tuple[Any, ...]:
    """The values of a setting, as its option reads them."""
    require_known([name], SETTINGS)
    param = next(param for param in context.command.params if param.name == name)
    if isinstance(param, click.Option) and param.is_bool_flag:
        return tuple(click.BOOL.convert(text, param, context) for text in texts)
    can_be_none = TrainConfig().to_settings()[name] is None  # in others, e.g. sched, 'none' is a name
    return tuple(None if can_be_none and text == "none" else param.type.convert(text, param, context) for text in texts)
