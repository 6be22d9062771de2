"""`fastcifar lr-find`: the range test of the learning rate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastcifar.cli import options, settings
from fastcifar.cli.settings import typed
from fastcifar.config import AUTO_SUGGESTIONS, LR_SUGGESTIONS, SETTINGS, LrRangeTestConfig, TrainConfig

if TYPE_CHECKING:
    from fastcifar.training.lr_finder import LrCurve


@click.command("lr-find", cls=options.SettingsCommand)
@settings.add(settings.options_of(LrRangeTestConfig, "Range test"))
@click.option(
    "--suggest",
    cls=options.SettingOption,
    section="Range test",
    default="auto",
    show_default=True,
    type=click.Choice(("auto", *LR_SUGGESTIONS)),
    help="Which suggestion the next command uses: the rate of the lowest loss, the one where the loss falls fastest, "
    "or the middle of the way down (more careful); auto: the first for sgd, the last for the others.",
)
@settings.add(
    settings.RECIPE,
    settings.BATCH_SIZE,
    settings.SEED,
    settings.MODEL,
    [options.data_dir],
    settings.DATA,
    settings.LOADER,
    settings.AUGMENTATION,
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
    **given: Any,
) -> None:
    """Find a learning rate: train for some steps while it rises, and look where the loss falls.

    Writes the curve (PNG and CSV) to a new folder in the folder of the runs, and prints the train command to run next.
    """
    config = settings.train_config(context, dict(given))
    lr = (context.default_map or {}).get("lr")  # of the recipe: the rates of Muon's rest keep their ratio to it
    config = config if lr in (None, "auto") else config.with_settings(lr=lr)

    import json

    from fastcifar.cli.output import Bars, command_line, show_next, table
    from fastcifar.training.find_lr import find_in_new_folder

    test = LrRangeTestConfig.for_optimizer(
        config.optimizer.name, num_steps=steps, start_lr=start_lr, end_lr=end_lr, mode=mode
    )
    rule = AUTO_SUGGESTIONS[config.optimizer.name] if suggest == "auto" else suggest
    with Bars() as bars:
        curve, files = find_in_new_folder(config, test, rule, runs_dir, bars)
    changed = typed(context, SETTINGS)
    found = None if curve.why_not else curve.suggestions[rule]
    rates = {} if found is None else _rates(config, found)
    words = ["fastcifar", "train", *settings.as_flags(context, [key for key in changed if key not in rates])]
    words += ["--runs-dir", runs_dir] if typed(context, ["runs_dir"]) else []
    for key, rate in rates.items():
        words += [f"--{key.replace('_', '-')}", f"{rate:.3g}"]
    line = command_line(*words)
    if as_json:
        facts = {
            "suggestions": curve.suggestions,
            "why_not": curve.why_not,
            "ended": curve.ended,
            "steps": len(curve.rates),
            "files": [str(file) for file in files],
            "next": None if curve.why_not else line,
        }
        click.echo(json.dumps(facts))
        return
    if curve.why_not:
        click.echo(f"no suggestion: {curve.why_not}")
    else:
        rows: list[tuple[str, Any]] = [(name, f"{rate:.3g}") for name, rate in curve.suggestions.items()]
        click.echo(table(rows))
    for file in files:
        click.echo(file)
    if found is None:
        line = command_line("fastcifar", *_without_suggestion(context, curve, config, test))
    show_next(line)


def _without_suggestion(
    context: click.Context, curve: LrCurve, config: TrainConfig, test: LrRangeTestConfig
) -> list[str | os.PathLike[str]]:
    """What follows a test that failed, as words for `command_line`: another test, with more steps or from a smaller
    rate on; or a look at the data, where the first loss was not finite already."""
    from fastcifar.training.lr_finder import MIN_POINTS

    if not len(curve.losses):
        return ["inspect", Path(config.data.data_dir) / "train.beton"]
    if len(curve.losses) < MIN_POINTS and curve.ended != "end_lr reached":
        changed = {"start_lr": f"{test.start_lr / 100:g}"}
    else:
        changed = {"steps": str(3 * test.num_steps)}
    words = ["lr-find", *settings.as_flags(context, set(typed(context, context.params)) - changed.keys())]
    return words + [word for key, value in changed.items() for word in (f"--{key.replace('_', '-')}", value)]


def _rates(config: TrainConfig, lr: float) -> dict[str, float]:
    """The rates of a run with the one that was found."""
    from fastcifar.training.optimizer import at_rate

    found = at_rate(config, lr)
    names = ("lr", "aux_lr", "bias_lr") if config.optimizer.name == "muon" else ("lr",)
    rates = {name: getattr(found.optimizer, name) for name in names}
    return {name: rate for name, rate in rates.items() if rate is not None}
