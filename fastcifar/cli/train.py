"""`fastcifar train`: train a network."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fastcifar.cli import options, settings
from fastcifar.cli.dry_run import show_dry_run
from fastcifar.cli.param_types import SEEDS, SEEDS_HELP
from fastcifar.cli.settings import flags, given_on_command_line
from fastcifar.config import CHANGEABLE, LENGTH, SETTINGS, TrainConfig
from fastcifar.errors import FastcifarError, Stopped, UsageError

LATEST = "\0"
"""`--resume` without a value. Not the empty string, which may come from an unset variable."""


@click.command(
    cls=options.SettingsCommand,
    short_help="Train a network on the images in the data folder.",
    common=(
        *("recipe", "model", "epochs", "batch_size", "lr", "optimizer", "weight_decay", "sched", "val_size"),
        *("data_dir", "device", "seed", "seeds", "name", "resume", "dry_run"),
    ),
)
@settings.add(settings.TRAINING)
@click.option("--seeds", type=SEEDS, help=SEEDS_HELP)
@click.option("--name", help="Name of the run folder.  [default: the recipe's or the network's]")
@click.option(
    "--resume",
    is_flag=False,
    flag_value=LATEST,
    metavar="[RUN]",
    shell_complete=options.complete_runs_and_groups,
    help="Resume a run (name or path; default: the latest) with its own settings.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the settings as a recipe, and the expected time and memory, measured over a few steps; write nothing.",
)
@options.runs_dir
@options.as_json
@click.pass_context
def train(
    context: click.Context,
    /,
    seeds: tuple[int, ...] | None,
    name: str | None,
    resume: str | None,
    dry_run: bool,
    runs_dir: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Train a network on the datasets in the data folder.

    A tenth of the training images is held out for validation, which selects the best weights; the test images are
    used once, at the end. Ctrl-C saves, and --resume continues. Several processes share each batch:

    \b
    torchrun --nproc-per-node 2 -m fastcifar train …
    """
    config = settings.train_config(context, dict(values))
    if seeds is not None:
        _refuse_with_seeds(context, resume)
    if dry_run:
        if resume is not None:
            raise click.UsageError("--dry-run is for new runs; it cannot be combined with --resume", context)
        show_dry_run(context, config, 1 if seeds is None else len(seeds), as_json)
        return

    import json

    from fastcifar.bars import Bars
    from fastcifar.cli.groups import train_and_print
    from fastcifar.cli.output import command_line, show_next, table
    from fastcifar.loggers import view_commands
    from fastcifar.report import write_report_or_warn
    from fastcifar.runs.group import find_group, is_group
    from fastcifar.runs.log_run import train_and_log
    from fastcifar.training import find_run
    from fastcifar.training.distributed import Distributed

    distributed = Distributed.from_environment()
    run, is_main = None, distributed.is_main
    if seeds is not None:
        _train_seeds(context, config, seeds, name, runs_dir, as_json)
        return
    if resume is not None:
        if (group := find_group(None if resume == LATEST else resume, runs_dir)) is not None:
            resumed = _resumed(context, group.config, config, is_group=True)
            train_and_print(context, replace(group, config=resumed), as_json)
            return
        run = find_run(None if resume == LATEST else resume, runs_dir)
        config = _resumed(context, run.read_config(), config, is_group=is_group(run.path.resolve().parent))
    if not is_main:  # only rank 0 logs
        logging.getLogger("fastcifar").setLevel(logging.ERROR)
    with Bars(shown=is_main) as bars:
        try:
            run, metrics = train_and_log(config, runs_dir=runs_dir, name=name, resume=run, reporter=bars)
        except Stopped as stopped:
            if is_main:
                raise
            raise SystemExit(stopped.exit_code) from None
        except UsageError as error:
            if is_main:
                raise
            # rank 0 may not have met this error
            own = FastcifarError(f"process {distributed.rank} of {distributed.world_size}: {error}")
            own.exit_code = error.exit_code
            raise own from None
    if not is_main:
        return
    report = write_report_or_warn(run)
    if as_json:
        click.echo(json.dumps({"run": str(run.path), **metrics, "report": report and str(report)}))
        return
    rows = [
        ("test accuracy", f"{metrics['test_accuracy']:.2%}"),
        ("test loss", f"{metrics['test_loss']:.4f}"),
        ("run folder", run.path),
    ]
    if "tta_accuracy" in metrics:
        rows.insert(1, (f"with {metrics['tta']}", f"{metrics['tta_accuracy']:.2%}"))
    if report:
        rows.append(("report", report))
    click.echo(table(rows))
    trust = ["--model", config.model.name] if config.model.names_code else []
    show_next(command_line("fastcifar", "explain", run.path, *trust), *view_commands(config.runtime.log, run.path))


def _refuse_with_seeds(context: click.Context, resume: str | None) -> None:
    for key, other in (("seed", "--seed"), ("resume", "--resume")):
        if given_on_command_line(context, [key]):
            hint = "; a group of seeds is resumed by its name alone" if resume else ""
            raise click.UsageError(f"--seeds cannot be combined with {other}{hint}", context)


def _train_seeds(
    context: click.Context, config: TrainConfig, seeds: tuple[int, ...], name: str | None, runs_dir: Path, as_json: bool
) -> None:
    from fastcifar.cli.groups import train_and_print
    from fastcifar.runs.group import create_group, seed_members

    label = f"{config.recipe or config.model.label}-{len(seeds)}-seeds" if name is None else name
    train_and_print(context, create_group(runs_dir, label, "seeds", config, seed_members(seeds)), as_json)


def _resumed(
    context: click.Context, stored: TrainConfig, requested: TrainConfig, *, is_group: bool = False
) -> TrainConfig:
    """The settings of the run, with those that the user changed; not the length of the runs of a group, or of one of
    them: they are compared."""
    changeable = [key for key in CHANGEABLE if not is_group or key not in LENGTH]
    given_now = given_on_command_line(context, (*SETTINGS, "name"))
    trusted = stored.model.names_code and requested.model.name == stored.model.name  # the user named the code
    fixed = [key for key in given_now if key not in changeable and not (key == "model" and trusted)]
    if fixed:
        raise click.UsageError(
            f"{flags(fixed)} cannot be changed when a run {'of a group ' if is_group else ''}is resumed; only "
            f"{flags(changeable)} can",
            context,
        )
    if stored.model.names_code and not trusted:
        raise click.UsageError(
            f"the run's network is {stored.model.name}, {stored.model.origin}; if you trust it, add "
            f"--model {stored.model.name}",
            context,
        )
    changed = requested.to_settings()
    return stored.with_settings(**{key: changed[key] for key in given_now if key in changeable})
