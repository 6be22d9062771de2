"""`fastcifar eval`: the metrics of a run."""

from __future__ import annotations

from pathlib import Path

import click

from fastcifar import config
from fastcifar.cli import options
from fastcifar.cli.command import Command
from fastcifar.cli.familiar import VALUES
from fastcifar.cli.settings import as_flags, given_on_command_line


@click.command("eval", cls=Command, short_help="Evaluate a run: accuracy, metrics by class, calibration.")
@options.run
@click.option(
    "--split",
    default="test",
    show_default=True,
    type=options.Choice(config.SPLITS, VALUES["split"]),
    help="val: the images held out from training.",
)
@click.option(
    "--tta", default="none", show_default=True, type=options.Choice(config.TTA_MODES), help="Test-time augmentation."
)
@options.trusted_model
@options.run_data_dir
@options.runs_dir
@options.device
@options.threads
@options.as_json
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    run: str | None,
    split: str,
    tta: str,
    model: str | None,
    data_dir: Path | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Evaluate RUN (a name or path; by default the latest): accuracy, loss, precision and recall by class, confusion
    matrix, calibration, the worst mistakes.

    Metrics, figures and predictions go to eval/ in the run folder.
    """
    import json

    from fastcifar.cli.output import Bars, command_line, show_next, table
    from fastcifar.inference.evaluation import evaluate_run
    from fastcifar.training import find_run
    from fastcifar.training.device import choose_threads

    choose_threads(threads)
    folder = find_run(run, runs_dir, trained=True)
    with Bars() as bars:
        evaluation = evaluate_run(
            folder, split=split, tta=tta, data_dir=data_dir, device=device, trusted=model, reporter=bars
        )
    metrics, names = evaluation.metrics, evaluation.class_names
    if as_json:
        about = {"run": folder.path, "split": split, "tta": tta, "files": evaluation.files}
        click.echo(json.dumps({**about, **metrics.to_dict(names), "worst": evaluation.worst}, default=str))
        return
    rows = [
        ("run", folder.path),
        ("images", f"{metrics.confusion.sum():,} ({split})"),
        ("accuracy", f"{metrics.accuracy:.2%}"),
        ("loss", f"{metrics.loss:.4f}"),
        ("calibration error (ECE)", f"{metrics.ece:.2%}"),
    ]
    click.echo(table(rows))
    width = max(len(name) for name in (*names, "class"))
    click.echo(f"\n{'class':<{width}}  precision   recall   images")
    for name, row in zip(names, metrics.per_class(), strict=True):
        precision, recall = _percent(row["precision"]), _percent(row["recall"])
        click.echo(f"{name:<{width}}  {precision:>9}  {recall:>7}  {row['num_images']:>7,}")
    confused = metrics.describe_confused(names)
    click.echo(f"\nmost confused: {confused}" if confused else "\nno image is misclassified")
    for file in evaluation.files:
        click.echo(file)
    needed = as_flags(context, given_on_command_line(context, ["model", "data_dir"]))
    show_next(command_line("fastcifar", "explain", folder.path, *needed))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
