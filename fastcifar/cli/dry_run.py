"""`--dry-run` of `fastcifar train` and `fastcifar sweep`: what is expected of the runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from fastcifar.cli.settings import as_flags, given_on_command_line
from fastcifar.config import TrainConfig

if TYPE_CHECKING:
    from fastcifar.runs.group import Member
    from fastcifar.training.dry_run import RunPlan


def show_dry_run(context: click.Context, config: TrainConfig, num_runs: int, as_json: bool) -> None:
    """Measure one run, and print a recipe with everything else as comments, or one JSON object."""
    from fastcifar import recipes
    from fastcifar.bars import Bars
    from fastcifar.cli.output import command_line, table
    from fastcifar.training.dry_run import dry_run
    from fastcifar.training.progress import duration

    with Bars() as bars:
        plan = dry_run(config, bars, runs_dir=context.params["runs_dir"])
    given = given_on_command_line(context, set(context.params) - {"dry_run", "as_json"})
    command = command_line("fastcifar", "train", *as_flags(context, given))
    if as_json:
        click.echo(json.dumps({**plan.to_dict(), "num_runs": num_runs, "next": command}))
        return
    rows = _rows(plan)
    if num_runs > 1:
        rows.append(("all runs", f"{num_runs:,}, about {duration(num_runs * plan.seconds)}"))
    own = [key for key in given if key in recipes.NOT_IN_RECIPES and key != "recipe"]
    own += ["model"] if config.model.names_code else []
    if own:
        rows.append(("not in a recipe", command_line(*as_flags(context, own))))
    click.echo(recipes.dump(plan.config, title=command).rstrip())
    for line in [*table(rows).splitlines(), f"next: {command}"]:
        click.echo(f"# {line}")


def show_sweep_dry_run(context: click.Context, config: TrainConfig, members: Sequence[Member], as_json: bool) -> None:
    """Measure a run of each combination, and print a table of them, or one JSON object."""
    from fastcifar.bars import Bars
    from fastcifar.cli.groups import as_text
    from fastcifar.cli.output import command_line, show_next, table
    from fastcifar.runs.sweep import dry_run_sweep
    from fastcifar.training.progress import duration

    with Bars() as bars:
        plans = dry_run_sweep(context.params["runs_dir"], config, members, bars)
    given = given_on_command_line(context, set(context.params) - {"dry_run", "as_json"})
    command = command_line("fastcifar", "sweep", *as_flags(context, given))
    seconds = sum(each.num_runs * each.plan.seconds for each in plans)
    if as_json:
        combinations = [
            {"combination": each.settings, "num_runs": each.num_runs, **each.plan.to_dict()} for each in plans
        ]
        click.echo(
            json.dumps({"combinations": combinations, "num_runs": len(members), "seconds": seconds, "next": command})
        )
        return
    lines = [("combination", "runs", "steps of a run", "time of a run")]
    for each in plans:
        cells = str(each.num_runs), f"{each.plan.num_steps:,}", f"about {duration(each.plan.seconds)}"
        lines.append((as_text(each.settings), *cells))
    click.echo(table(lines) + "\n")
    largest = max((each.plan for each in plans), key=lambda plan: plan.memory_bytes)
    rows = [
        ("all runs", f"{len(members):,}, about {duration(seconds)}"),
        ("memory", f"{largest.memory_bytes / 2**30:.2f} GiB: {largest.memory_kind}"),
    ]
    click.echo(table(rows))
    show_next(command)


def _rows(plan: RunPlan) -> list[tuple[str, str]]:
    from fastcifar.training.progress import duration

    amp = f" with {plan.amp} autocast" if plan.amp != "off" else ""
    images = f"{plan.num_train_images:,} training, {plan.num_val_images:,} validation, {plan.num_test_images:,} test"
    steps = f"{plan.steps_per_epoch:,} per epoch, {plan.num_steps:,} in all"
    if plan.config.max_minutes is not None:
        steps += f", with max_minutes {plan.config.max_minutes:g}"
    rows = [
        ("loader", f"{plan.loader} ({plan.loader_reason})"),
        ("images", images),
        ("steps", steps),
        ("network", f"{plan.config.model.name}, {plan.num_parameters:,} parameters, on {plan.device}{amp}"),
        ("memory", f"{plan.memory_bytes / 2**30:.2f} GiB: {plan.memory_kind}"),
        ("time", f"about {duration(plan.seconds)}, measured over {plan.num_measured} steps"),
    ]
    for stage in plan.stages:
        height, width = stage.image_size
        rows.append((f"  {height}x{width} images", f"{stage.step_s:.3g} s per step, {stage.num_steps:,} steps"))
    if plan.num_val_images:
        rows.append(("  validation", f"{plan.validation_s:.3g} s per epoch"))
    rows.append(("  test", f"{plan.test_s:.3g} s"))
    if plan.config.optimizer.lr == "auto":
        rows.append(("learning rate", "auto: of a range test when the run starts, whose time is not included"))
    return rows
