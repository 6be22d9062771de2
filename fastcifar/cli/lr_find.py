"""`fastcifar lr-find`: the range test of the learning rate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from fastcifar.cli import options, settings
from fastcifar.cli.settings import given_on_command_line
from fastcifar.config import AUTO_SUGGESTIONS, LR_SUGGESTIONS, SETTINGS, LrRangeTestConfig, TrainConfig


@click.command(
    "lr-find",
    cls=options.SettingsCommand,
    short_help="Find a learning rate by a range test.",
    common=("recipe", "model", "batch_size", "optimizer", "steps", "start_lr", "end_lr", "data_dir", "device", "seed"),
)
@settings.add(settings.options_of(LrRangeTestConfig, "Range test"))
@click.option(
    "--suggest",
    cls=options.SettingOption,
    section="Range test",
    default="auto",
    show_default=True,
    type=click.Choice(("auto", *LR_SUGGESTIONS)),
    help="Which suggestion the next command uses: the rate of the lowest loss, that of the steepest fall, or the "
    "middle of the fall (more careful); auto: the first for sgd, the last for the others.",
)
@settings.add(
    settings.RECIPE,
    settings.EXPERIMENT,
    settings.RANGE_TEST_OPTIMIZER,
    settings.DEVICE,
)
@options.runs_dir
@options.as_json
@click.pass_context
def lr_find(
    context: click.Context,
    /,
    steps: int,
    start_lr: float | None,
    end_lr: float | None,
    mode: str,
    suggest: str,
    runs_dir: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Find a learning rate: train for some steps while it rises, and see where the loss falls.

    Writes the curve (PNG and CSV) to a new folder in the runs folder, and prints the train command to run next.
    """
    config = settings.train_config(context, dict(values))
    lr = (context.default_map or {}).get("lr")  # of the recipe: the other rates of Muon keep their ratio to it
    config = config if lr in (None, "auto") else config.with_settings(lr=lr)

    import json

    from fastcifar.bars import Bars
    from fastcifar.cli.output import command_line, show_next, table
    from fastcifar.training.lr_finder import run_lr_find

    optimizer = config.optimizer.name
    test = LrRangeTestConfig.for_optimizer(optimizer, num_steps=steps, start_lr=start_lr, end_lr=end_lr, mode=mode)
    suggestion = AUTO_SUGGESTIONS[optimizer] if suggest == "auto" else suggest
    with Bars() as bars:
        curve, files = run_lr_find(config, test, suggestion, runs_dir, bars)
    line = None
    if not curve.failure_reason:
        line = command_line("fastcifar", *_train_arguments(context, config, curve.suggestions[suggestion], runs_dir))
    if as_json:
        result = {
            "suggestions": curve.suggestions,
            "failure_reason": curve.failure_reason,
            "stop_reason": curve.stop_reason,
            "steps": len(curve.rates),
            "files": [str(file) for file in files],
            "next": line,
        }
        click.echo(json.dumps(result))
        return
    if curve.failure_reason:
        click.echo(f"no suggestion: {curve.failure_reason}")
    else:
        rows: list[tuple[str, Any]] = [(name, f"{rate:.3g}") for name, rate in curve.suggestions.items()]
        click.echo(table(rows))
    for file in files:
        click.echo(file)
    if line:
        show_next(line)


def _train_arguments(
    context: click.Context, config: TrainConfig, lr: float, runs_dir: Path
) -> list[str | os.PathLike[str]]:
    """The arguments that train with this learning rate."""
    from fastcifar.training.optimizer import scale_lrs

    optimizer = scale_lrs(config, lr).optimizer
    names = ("lr", "aux_lr", "bias_lr") if optimizer.name == "muon" else ("lr",)
    rates = {name: getattr(optimizer, name) for name in names if getattr(optimizer, name) is not None}
    kept = [name for name in given_on_command_line(context, SETTINGS) if name not in rates]
    arguments = ["train", *settings.as_flags(context, kept)]
    arguments += ["--runs-dir", runs_dir] if given_on_command_line(context, ["runs_dir"]) else []
    return arguments + [text for name, rate in rates.items() for text in (f"--{name.replace('_', '-')}", f"{rate:.3g}")]
