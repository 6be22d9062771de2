"""`fastcifar runs`: lists, compares and logs runs."""

from __future__ import annotations

import operator
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastcifar.cli import options
from fastcifar.cli.command import Command, CommandGroup
from fastcifar.cli.param_types import PATH, Parsed
from fastcifar.cli.settings import as_flags, given_on_command_line
from fastcifar.config import LOGGERS, SETTINGS
from fastcifar.config.setting import Names, Setting

if TYPE_CHECKING:
    from fastcifar.runs.group import Group
    from fastcifar.runs.summary import RunSummary

SORTS = ("name", "date", "accuracy", "seconds")
COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "!=": operator.ne}
COMPARISONS["="] = operator.eq
FILTERED = ("accuracy", "epochs", "finished", "kind", "name", "started", "train_seconds", "val_accuracy")


def _filter(text: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"\s*([\w-]+)\s*(>=|<=|!=|=|>|<)\s*(.+?)\s*", text)
    if not match:
        raise ValueError
    return match[1].lower().strip("-").replace("-", "_"), match[2], match[3]


FILTER = Parsed("filter", _filter, "e.g. recipe=fast, accuracy>=0.9 or lr<0.1")


@click.group(cls=CommandGroup, invoke_without_command=True, short_help="List runs, and compare them.")
@click.option("--sort", type=click.Choice(SORTS), default="date", show_default=True, help="Order of the list.")
@click.option(
    "--filter",
    "filters",
    type=FILTER,
    multiple=True,
    metavar="NAME=VALUE",
    help="Only runs with this setting or score; also with <, <=, >, >= and !=; may be repeated.",
)
@click.option("--members", is_flag=True, help="List the runs of each group, too.")
@options.runs_dir
@options.as_json
@click.pass_context
def runs(
    context: click.Context,
    /,
    sort: str,
    filters: tuple[tuple[str, str, str], ...],
    members: bool,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """List the runs: recipe, settings that differ from it, accuracy.

    A group of seeds is one line, with the mean and Student's 95% interval over its runs; a sweep shows its best
    settings. The interval of a single run is that of Wilson, over other test images of the same kind; it says nothing
    about other seeds.
    """
    if context.invoked_subcommand is not None:
        if given_on_command_line(context, context.params):
            command = context.invoked_subcommand
            raise click.UsageError(f"options before {command!r} are those of the list; write them after it", context)
        return
    import json

    from fastcifar.cli.output import command_line, show_next
    from fastcifar.runs.summary import RunSummary, list_runs

    rows = []
    for found in list_runs(runs_dir):
        if isinstance(found, RunSummary):
            rows.append(_row(found))
        else:
            rows.append(_group_row(*found))
            rows += [_row(run) for run in found[1]] if members else []
    is_empty = not rows
    rows = [row for row in rows if all(_passes(row, *each) for each in filters)]
    key = {"name": "name", "date": "started", "accuracy": "test_accuracy", "seconds": "train_seconds"}[sort]
    known = [row for row in rows if row[key] not in (None, "")]
    known.sort(key=operator.itemgetter(key), reverse=sort in ("date", "accuracy"))
    rows = [*known, *(row for row in rows if row[key] in (None, ""))]
    if as_json:
        click.echo(json.dumps({"runs_dir": str(runs_dir), "runs": rows}))
        return
    click.echo(_table(rows) if rows else f"no run in {runs_dir}{'' if is_empty else ' that passes the filters'}")
    names = [row["name"] for row in rows if row["test_accuracy"] is not None and row["kind"] != "sweep"][:2]
    folder = as_flags(context, given_on_command_line(context, ["runs_dir"]))
    if len(names) == 2:
        show_next(command_line("fastcifar", "runs", "compare", *names, *folder))
    elif is_empty:
        show_next(command_line("fastcifar", "train", "--recipe", "fast", *folder))


def _row(run: RunSummary) -> dict[str, Any]:
    config = run.config
    return {
        "name": run.name,
        "recipe": None if config is None else config.recipe,
        "model": None if config is None else config.model.name,
        "changed": run.changed,
        "epochs": len(run.history),
        "val_accuracy": run.best_val_accuracy,
        "test_accuracy": run.score("test_accuracy"),
        "interval": run.interval,
        "train_seconds": run.score("train_seconds"),
        "started": run.started,
        "finished": run.is_finished,
        "path": str(run.run.path),
        "settings": {} if config is None else config.to_settings(),
        "runs": None,
        "kind": "run",
    }


def _group_row(group: Group, members: list[RunSummary]) -> dict[str, Any]:
    """A group as one row; of a sweep, the runs with the best settings."""
    from fastcifar.runs.scores import scores_of
    from fastcifar.runs.summary import changed_settings
    from fastcifar.runs.sweep import sweep_results

    best = sweep_results(group).best if group.kind == "sweep" else None
    means, config = scores_of(best.runs if best else members), group.config
    values = {key: mean.mean for key, mean in means.items()}
    num_finished = sum(run.is_finished for run in members)
    varied = {name for member in group.members for name in member.settings}

    def without_varied(given: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name not in varied}

    return {
        "name": group.path.name,
        "recipe": config.recipe,
        "model": config.model.name,
        "changed": {**without_varied(changed_settings(config)), **(best.settings if best else {})},
        "epochs": max((len(run.history) for run in members), default=0),
        "val_accuracy": values.get("val_accuracy"),
        "test_accuracy": values.get("test_accuracy"),
        "interval": means["test_accuracy"].interval if "test_accuracy" in means else None,
        "train_seconds": sum(run.score("train_seconds") or 0 for run in members),
        "started": min((run.started for run in members), default=""),
        "finished": num_finished == len(group.members),
        "path": str(group.path),
        "settings": {**without_varied(config.to_settings()), **(best.settings if best else {})},
        "runs": f"{num_finished}/{len(group.members)}",
        "kind": group.kind,
    }


def _passes(row: dict[str, Any], name: str, comparison: str, value: str) -> bool:
    """Whether a row passes a filter: numbers are compared as numbers, everything else as text."""
    from fastcifar.runs.summary import setting_text

    known = {**row["settings"], **row, "accuracy": row["test_accuracy"]}
    if name not in known and name not in SETTINGS:
        raise click.UsageError(f"--filter names {name!r}; expected a setting or one of: {', '.join(FILTERED)}")
    if name not in known:  # its runs differ in it
        return comparison == "!="
    own, compare = known[name], COMPARISONS[comparison]
    if isinstance(own, (int, float)) and not isinstance(own, bool):
        try:
            number = float(value[:-1]) / 100 if value.endswith("%") else float(value)
        except ValueError:
            if comparison in ("=", "!="):
                return comparison == "!="
            raise click.UsageError(f"--filter {name}{comparison}{value}: expected a number") from None
        if name.endswith("accuracy") and number > 1:
            raise click.UsageError(f"--filter {name}{comparison}{value}: expected a share, up to 1, or e.g. 93%")
        return bool(compare(own, number))
    if isinstance(own, bool):
        value = setting_text(click.BOOL.convert(value, None, None))
    if comparison not in ("=", "!=") and (name not in ("name", "started") or not own):
        return False
    return bool(compare(*(text.lower().replace(" ", "") for text in (setting_text(own), value))))


def _table(rows: list[dict[str, Any]]) -> str:
    from fastcifar.cli.output import table
    from fastcifar.runs.summary import setting_text
    from fastcifar.training.progress import duration

    columns = ("run", "runs", "recipe", "epochs", "accuracy", "95% interval", "time", "date", "changed settings")
    lines = [columns]
    for row in rows:
        accuracy, interval, seconds = row["test_accuracy"], row["interval"], row["train_seconds"]
        changed = ", ".join(f"{key}={setting_text(value)}" for key, value in row["changed"].items())
        lines.append(
            (
                row["name"],
                row["runs"] or "",
                row["recipe"] or "-",
                str(row["epochs"]),
                "not finished" if not row["finished"] else "-" if accuracy is None else f"{accuracy:.2%}",
                "-" if interval is None else f"{interval[0]:.2%} to {interval[1]:.2%}",
                "-" if seconds is None else duration(seconds),
                row["started"][:16].replace("T", " ") or "-",
                changed if len(changed) <= 100 else f"{changed[:99]}…",
            )
        )
    return table(lines, [columns.index(name) for name in ("date", "95% interval", "time", "recipe")])


@runs.command(cls=Command)
@click.argument("names", nargs=-1, metavar="RUN RUN...", shell_complete=options.complete_runs_and_groups)
@click.option("--output", type=PATH, metavar="FOLDER", help="Where files go.  [default: comparisons/ in --runs-dir]")
@options.runs_dir
@options.as_json
def compare(names: tuple[str, ...], output: Path | None, runs_dir: Path, as_json: bool) -> None:
    """Compare runs, or groups of seeds, with the first one.

    Two runs by McNemar's exact test on the same test images; two groups by Welch's t-test. Table, curves and the images
    on which they differ go to files.
    """
    import json
    from dataclasses import asdict

    from fastcifar.cli.output import table
    from fastcifar.runs.compare import compare as compare_runs
    from fastcifar.runs.compare import comparison_folder
    from fastcifar.runs.compare_files import table_of, write_comparison

    comparison = compare_runs(names, runs_dir)
    files = write_comparison(comparison, output or comparison_folder(comparison, runs_dir))
    if as_json:
        found = {
            "runs": [
                {"name": entry.name, "scores": {key: asdict(mean) for key, mean in entry.scores.items()}}
                for entry in comparison.entries
            ],
            "settings": comparison.settings,
            "differences": [
                {
                    "name": each.name,
                    "score": each.score.key,
                    "test": each.test and {"kind": type(each.test).__name__, **asdict(each.test)},
                    "sentence": each.sentence,
                }
                for each in comparison.differences
            ],
            "files": list(map(str, files)),
        }
        click.echo(json.dumps(found))
        return
    click.echo(table(table_of(comparison)) + "\n")
    for difference in comparison.differences:
        click.echo(difference.sentence)
    for file in files:
        click.echo(file)


TO = Setting(Names(LOGGERS, can_be_empty=True), f"Dashboards, of {', '.join(LOGGERS)}; may be repeated.", "to", "")


@runs.command("log")
@click.argument("name", metavar="RUN", shell_complete=options.complete_runs_and_groups)
@options.option("to", (), TO)
@options.trusted_model
@options.runs_dir
@options.as_json
def log_to(name: str, to: tuple[str, ...], model: str | None, runs_dir: Path, as_json: bool) -> None:
    """Log RUN, a run or a group, to a dashboard: its epochs, settings, final scores and pictures.

    As 'train --log' does during the training; steps are logged only then.
    """
    if not to:
        raise click.UsageError(f"missing option '--to'; expected one or more of: {', '.join(LOGGERS)}")
    TO.kind.check("to", to)

    import json

    from fastcifar.bars import Bars
    from fastcifar.cli.output import show_next
    from fastcifar.loggers import view_commands
    from fastcifar.runs.log_run import log_run

    with Bars() as bars:
        path, names = log_run(name, to, runs_dir=runs_dir, trusted=model, reporter=bars)
    if as_json:
        click.echo(json.dumps({"path": str(path), "runs": names, "to": to}))
        return
    for each in names:
        click.echo(f"{each} logged to {', '.join(to)}")
    show_next(*view_commands(to, path))
