"""`fastcifar eval`: how good a run is."""

from __future__ import annotations

from pathlib import Path

import click

from fastcifar import config
from fastcifar.cli import options
from fastcifar.cli.settings import as_flags, typed


@click.command("eval")
@click.argument("run", required=False)
@click.option(
    "--split",
    default="test",
    show_default=True,
    type=click.Choice(("val", "test")),
    help="val: the images that training held out.",
)
@click.option(
    "--tta", default="none", show_default=True, type=click.Choice(config.TTA_MODES), help="Test-time augmentation."
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
    """Score RUN (a name or path; the latest if not given): accuracy, loss, precision and recall of each class,
    confusion, calibration, the worst images.

    Numbers and pictures go to eval/ in the folder of the run.
    """
    import json

    from fastcifar.cli.output import Bars, command_line, show_next, table
    from fastcifar.explain import evaluate_run
    from fastcifar.training import find_run
    from fastcifar.training.device import choose_threads

    choose_threads(threads)
    folder = find_run(run, runs_dir, trained=True)
    with Bars() as bars:
        made = evaluate_run(
            folder, split=split, tta=tta, data_dir=data_dir, device=device, trusted=model, reporter=bars
        )
    scores, names = made.scores, made.class_names
    if as_json:
        about = {"run": str(folder.path), "split": split, "tta": tta, "files": [str(file) for file in made.files]}
        click.echo(json.dumps({**about, **scores.facts(names), "worst": list(made.worst)}))
        return
    click.echo(
        table(
            [
                ("run", folder.path),
                ("images", f"{scores.confusion.sum():,} ({split})"),
                ("accuracy", f"{scores.accuracy:.2%}"),
                ("loss", f"{scores.loss:.4f}"),
                ("calibration error", f"{scores.ece:.2%}"),
            ]
        )
    )
    width = max(len(name) for name in (*names, "class"))
    click.echo(f"\n{'class':<{width}}  precision   recall   images")
    for i, name in enumerate(names):
        count = scores.confusion[i].sum()
        click.echo(f"{name:<{width}}  {_share(scores.precision[i]):>9}  {_share(scores.recall[i]):>7}  {count:>7,}")
    pairs = [
        f"{names[true]} taken for {names[guess]} {count:,} times" for true, guess, count in scores.most_confused(3)
    ]
    click.echo(f"\nmost confused: {'; '.join(pairs)}" if pairs else "\nnothing is misclassified")
    for file in made.files:
        click.echo(file)
    show_next(
        command_line("fastcifar", "explain", folder.path, *as_flags(context, typed(context, ["model", "data_dir"])))
    )


def _share(value: float) -> str:
    return "-" if value != value else f"{value:.2%}"
