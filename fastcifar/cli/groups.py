"""What `train --seeds` and `sweep` share: a group is trained, reported and printed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fastcifar.cli.settings import as_flags, given_on_command_line
from fastcifar.errors import DivergedError

if TYPE_CHECKING:
    from fastcifar.runs.group import Group
    from fastcifar.runs.scores import Score
    from fastcifar.runs.statistics import Mean
    from fastcifar.runs.summary import RunSummary
    from fastcifar.runs.sweep import Cell, Effect, Sweep


def train_and_print(context: click.Context, group: Group, as_json: bool) -> None:
    """Train the runs of a group that are not finished, write its reports, and print what it shows.

    Raises DivergedError (5), after that, if a run of a group of seeds diverged.
    """
    from fastcifar.bars import Bars
    from fastcifar.cli.output import command_line, show_next, table
    from fastcifar.loggers import view_commands
    from fastcifar.report import write_report_or_warn
    from fastcifar.report.group import write_group_report
    from fastcifar.runs.scores import SCORES, scores_of
    from fastcifar.runs.summary import summaries
    from fastcifar.runs.sweep import sweep_results, train_sweep
    from fastcifar.runs.train_group import train_group
    from fastcifar.training.distributed import Distributed

    is_main = Distributed.from_environment().is_main
    if not is_main:  # only rank 0 logs
        logging.getLogger("fastcifar").setLevel(logging.ERROR)
    with Bars(shown=is_main) as bars:
        if group.kind == "sweep":
            train_sweep(group, bars)
        else:
            train_group(group, reporter=bars)
        if not is_main:
            return
        runs = list(summaries(group))
        trained = [run.run for run in runs if run.run.best.is_file()]
        bars.begin("reports", len(trained))
        for run in trained:
            write_report_or_warn(run)
            bars.advance(1)
        report = write_group_report(group)
    sweep = sweep_results(group) if group.kind == "sweep" else None
    scored = runs if sweep is None else sweep.best.runs if sweep.best else []
    scores = scores_of(scored)
    if as_json:
        click.echo(json.dumps({"group": str(group.path), "report": str(report), **_as_dict(runs, scores, sweep)}))
    else:
        if sweep is not None:
            _print_sweep(sweep)
        rows = [(score.name, *_cells(score, scores[score.key])) for score in SCORES if score.key in scores]
        click.echo(table([*rows, ("folder", group.path, "")]))
        click.echo(report)
        compare: list[str | os.PathLike[str]] = ["compare", group.path, "OTHER"] if sweep is None else []
        views = view_commands(group.config.runtime.log, group.path)
        folder = as_flags(context, given_on_command_line(context, ["runs_dir"]))
        show_next(command_line("fastcifar", "runs", *compare, *folder), *views)
    diverged = [run.name for run in runs if run.has_diverged]
    if diverged and sweep is None:
        raise DivergedError(f"{len(diverged)} of {len(group.members)} runs diverged: {', '.join(diverged)}")


def _as_dict(runs: Sequence[RunSummary], scores: Mapping[str, Mean], sweep: Sweep | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "runs": [{"name": run.run.path.name, "test_accuracy": run.score("test_accuracy")} for run in runs],
        "scores": {key: asdict(mean) for key, mean in scores.items()},
    }
    if sweep is not None:
        found["best"] = sweep.best and sweep.best.settings
        found["effects"] = [_row({each.name: each.value}, each) for each in sweep.effects]
        found["combinations"] = [_row(each.settings, each) for each in sweep.cells]
    return found


def _row(settings: dict[str, Any], each: Effect | Cell) -> dict[str, Any]:
    accuracy = each.val_accuracy and asdict(each.val_accuracy)
    return {"settings": settings, "val_accuracy": accuracy, "num_diverged": each.num_diverged}


def _print_sweep(sweep: Sweep) -> None:
    from fastcifar.cli.output import table
    from fastcifar.runs.scores import VAL_ACCURACY, shown

    named: list[tuple[str, list[tuple[str, Effect | Cell]]]] = [
        ("effects", [(as_text({each.name: each.value}), each) for each in sweep.effects]),
        ("combinations", [(as_text(each.settings), each) for each in sweep.cells]),
    ]
    for title, rows in named:
        lines = [(title, "validation accuracy", "runs", "diverged")]
        for name, each in rows:
            accuracy = each.val_accuracy
            shown_accuracy = shown(VAL_ACCURACY, accuracy) if accuracy else "-"
            lines.append((name, shown_accuracy, str(accuracy.num_runs if accuracy else 0), str(each.num_diverged)))
        click.echo(table(lines) + "\n")
    if sweep.best is None:
        click.echo("no combination is without a run that diverged: there is no best, and no test image was scored")
    else:
        best = as_text(sweep.best.settings)
        click.echo(f"best by validation accuracy: {best}; the test images were scored once, for it")


def as_text(settings: dict[str, Any]) -> str:
    """The settings of a combination on one line."""
    from fastcifar.runs.summary import setting_text

    return ", ".join(f"{key}={setting_text(value)}" for key, value in settings.items())


def _cells(score: Score, mean: Mean) -> tuple[str, str]:
    from fastcifar.runs.scores import shown

    if mean.std is None:
        return shown(score, mean), ""
    is_time = score.key == "train_seconds"
    std = f"{100 * mean.std:.2f}" if score.is_share else f"{mean.std:.1f} s" if is_time else f"{mean.std:.4f}"
    return shown(score, mean), f"standard deviation {std}"
