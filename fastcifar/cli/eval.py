"""`fastcifar eval`: the metrics of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastcifar import config
from fastcifar.cli import options
from fastcifar.cli.command import Command
from fastcifar.cli.familiar import VALUES
from fastcifar.cli.param_types import PATH, Choice
from fastcifar.errors import escape

if TYPE_CHECKING:
    from fastcifar.inference.corruption_scores import CorruptionEvaluation
    from fastcifar.inference.evaluation import Evaluation


@click.command("eval", cls=Command, short_help="Evaluate a run: accuracy, metrics by class, calibration.")
@options.run
@click.option(
    "--split",
    default="test",
    show_default=True,
    type=Choice(config.SPLITS, VALUES["split"]),
    help="val: the images held out from training.",
)
@click.option("--tta", default="none", show_default=True, type=Choice(config.TTA_MODES), help="Test-time augmentation.")
@click.option(
    "--on",
    type=PATH,
    metavar="PATH",
    help="Another test set: a beton, a folder or archive of images, arrays (CIFAR-10.1), or the folder of CIFAR-10-C.",
)
@click.option(
    "--without",
    type=PATH,
    metavar="FILE",
    help="Score the test images also without those that an issues.csv of 'fastcifar audit' names: leaks, and disputed "
    "labels.",
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
    on: Path | None,
    without: Path | None,
    model: str | None,
    data_dir: Path | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Evaluate RUN (a name or path; by default the latest): accuracy with its 95% interval, loss, precision, recall and
    F1 by class, confusion matrix, calibration, the worst mistakes.

    Metrics, figures and predictions go to eval/ in the run folder.
    """
    if on is not None and split != "test":
        raise click.UsageError(f"--split {split} cannot be combined with --on, which names the images", context)
    if without is not None and (on is not None or split != "test"):
        other = "--on" if on is not None else f"--split {split}"
        raise click.UsageError(f"--without names test images of the data; cannot be combined with {other}", context)

    import json

    from fastcifar.audit.edits import read_left_out
    from fastcifar.bars import Bars
    from fastcifar.cli.output import command_line, show_next, show_next_on_run, table
    from fastcifar.inference.evaluation import Evaluation, evaluate_run
    from fastcifar.training import find_run
    from fastcifar.training.device import choose_threads

    choose_threads(threads)
    folder = find_run(run, runs_dir, trained=True)
    left_out = None if without is None else read_left_out(without)
    common: dict[str, Any] = {"tta": tta, "data_dir": data_dir, "device": device, "trusted": model}
    with Bars() as bars:
        evaluation: Evaluation | CorruptionEvaluation
        if on is None:
            evaluation = evaluate_run(folder, split=split, **common, without=left_out, reporter=bars)
        else:
            from fastcifar.inference.other_sets import evaluate_on

            evaluation = evaluate_on(folder, on, **common, reporter=bars)
    if as_json:
        about = {"run": folder.path, **({"split": split} if on is None else {"on": on}), "tta": tta}
        click.echo(json.dumps({**about, "files": evaluation.files, **evaluation.to_dict()}, default=str))
        return
    images = split if on is None else escape(str(on))
    if isinstance(evaluation, Evaluation):
        click.echo(table([("run", folder.path), *_scores(evaluation, images)]))
        if evaluation.reduced:
            _show_reduced(evaluation)
        _show_classes(evaluation)
    else:
        click.echo(table([("run", folder.path), *_mean_scores(evaluation, images)]))
        _show_severities(evaluation)
    for file in evaluation.files:
        click.echo(file)
    if on is None:
        all_correct = split == "test" and isinstance(evaluation, Evaluation) and not evaluation.worst
        show_next_on_run(context, folder, all_correct=all_correct)
    else:
        show_next(command_line("fastcifar", "report", folder.path))


def _scores(evaluation: Evaluation, images: str) -> list[tuple[str, str]]:
    metrics, calibrated = evaluation.metrics, evaluation.calibrated
    low, high = metrics.interval
    return [
        ("images", f"{len(metrics.predictions):,} ({images})"),
        ("accuracy", f"{metrics.accuracy:.2%} (95% interval {low:.2%} to {high:.2%})"),
        *([] if metrics.top5_accuracy is None else [("top-5 accuracy", f"{metrics.top5_accuracy:.2%}")]),
        ("balanced accuracy", f"{metrics.balanced_accuracy:.2%}"),
        ("macro F1", f"{metrics.macro_f1:.2%}"),
        ("loss", f"{metrics.loss:.4f}" + (f"; calibrated {calibrated.loss:.4f}" if calibrated else "")),
        (
            "calibration error (ECE)",
            f"{metrics.ece:.2%}" + (f"; calibrated {calibrated.ece:.2%}" if calibrated else ""),
        ),
        _temperature(evaluation),
    ]


def _show_reduced(evaluation: Evaluation) -> None:
    from fastcifar.cli.output import table

    rows = [("", "images", "accuracy", "95% interval", "macro F1", "loss")]
    named = [("all", evaluation.metrics), *((f"without {score.name}", score.metrics) for score in evaluation.reduced)]
    for number, (name, metrics) in enumerate(named):
        low, high = metrics.interval
        interval = f"{low:.2%} to {high:.2%}"
        texts = f"{len(metrics.predictions):,}", f"{metrics.accuracy:.2%}", interval, f"{metrics.macro_f1:.2%}"
        rows.append((f"and {name}" if number > 1 else name, *texts, f"{metrics.loss:.4f}"))
    click.echo(f"\n{table(rows)}")
    counts = ", ".join(f"{kind} ({count:,})" for kind, count in evaluation.reduced[-1].counts.items())
    click.echo(f"left out: {counts or 'no image'}")


def _show_classes(evaluation: Evaluation) -> None:
    metrics, names = evaluation.metrics, evaluation.class_names
    width = max(len(name) for name in (*names, "class"))
    click.echo(f"\n{'class':<{width}}  precision   recall       F1   images")
    for name, row in zip(names, metrics.per_class(), strict=True):
        precision, recall, f1 = (_percent(row[key]) for key in ("precision", "recall", "f1"))
        click.echo(f"{name:<{width}}  {precision:>9}  {recall:>7}  {f1:>7}  {row['num_images']:>7,}")
    confused = metrics.describe_confused(names)
    click.echo(f"\nmost confused: {confused}" if confused else "\nno image is misclassified")


def _mean_scores(evaluation: CorruptionEvaluation, images: str) -> list[tuple[str, str]]:
    ece = f"{evaluation.mean(evaluation.ece):.2%}"
    if evaluation.calibrated_ece is not None:
        ece += f"; calibrated {evaluation.mean(evaluation.calibrated_ece):.2%}"
    return [
        ("images", f"{evaluation.num_images:,} of each corruption and severity ({images})"),
        ("mean accuracy", f"{evaluation.mean_accuracy:.2%}"),
        ("mean corruption error", f"{evaluation.mean_corruption_error:.2%} (not normalised by AlexNet's)"),
        ("calibration error (ECE)", ece),
        _temperature(evaluation),
    ]


def _show_severities(evaluation: CorruptionEvaluation) -> None:
    from fastcifar.inference.corruption_scores import is_counted

    counted, title = is_counted(evaluation.corruptions), "accuracy by severity"
    rows = [(title, [f"{number}" for number in range(1, evaluation.accuracy.shape[1] + 1)] + ["mean"])]
    for name, values, is_part in zip(evaluation.corruptions, evaluation.accuracy, counted, strict=True):
        rows.append((name if is_part else f"{name}*", [f"{value:.2%}" for value in (*values, values.mean())]))
    means = evaluation.accuracy[counted].mean(axis=0)
    rows.append(("mean", [f"{value:.2%}" for value in (*means, means.mean())]))
    width = max(len(name) for name, _ in rows)
    click.echo()
    for name, texts in rows:
        click.echo(f"{name:<{width}}" + "".join(f"{text:>9}" for text in texts))
    if not counted.all():
        click.echo("* not one of the benchmark's corruptions: not part of the means")
    click.echo()


def _temperature(evaluation: Evaluation | CorruptionEvaluation) -> tuple[str, str]:
    calibration = evaluation.calibration
    if calibration is None:
        return "not calibrated", evaluation.not_calibrated
    return "temperature", f"{calibration.temperature:.3f}, fitted on {calibration.num_images:,} validation images"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
