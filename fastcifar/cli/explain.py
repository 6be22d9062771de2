"""`fastcifar explain`: class activation maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastcifar.cli import images as own
from fastcifar.cli import options, settings
from fastcifar.config import ExplainConfig

if TYPE_CHECKING:
    from fastcifar.explain import Explanation
    from fastcifar.training import RunFolder


@click.command(cls=options.SettingsCommand, short_help="Draw class activation maps of the images of a run.")
@click.argument("words", nargs=-1, metavar="[RUN] [PATH...]", shell_complete=options.complete_runs)
@settings.add(settings.options_of(ExplainConfig))
@options.run_option
@click.option(
    "--image",
    "images",
    multiple=True,
    type=own.PATH_OR_STDIN,
    help="Another way to write PATH, which is then no RUN whatever its name; may be repeated.",
)
@options.trusted_model
@options.run_data_dir
@options.runs_dir
@options.device
@options.threads
@options.as_json
@click.pass_context
def explain(
    context: click.Context,
    /,
    words: tuple[str, ...],
    named_run: str | None,
    images: tuple[Path | str, ...],
    model: str | None,
    data_dir: Path | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Draw class activation maps of test images of RUN (a name or path; by default the latest), or of your own images.

    By default: the 25 misclassified images of largest loss, and the evidence for the predicted class. A grid, a sheet
    for each image with all layers and methods, a table and the maps go to explain/ in the run folder; those of your
    own images to explain/images/. PATH names them as for 'fastcifar predict'.
    """
    config = ExplainConfig(**overrides)
    runs, more_images = own.split_words(words, runs_dir, context)
    runs += [] if named_run is None else [named_run]
    images += tuple(more_images)
    if len(runs) > 1:
        raise click.UsageError(f"got {len(runs)} runs, {', '.join(map(repr, runs))}; expected at most one", context)

    import json

    from fastcifar.bars import Bars
    from fastcifar.explain import explain_run
    from fastcifar.report import write_report_or_warn
    from fastcifar.training import find_run
    from fastcifar.training.device import choose_threads

    choose_threads(threads)
    folder = find_run(runs[0] if runs else None, runs_dir, trained=True)
    given = own.with_stdin(images)
    with Bars() as bars:
        explanation = explain_run(
            folder, config, images=given or None, data_dir=data_dir, device=device, trusted=model, reporter=bars
        )
    found = explanation.own
    report = write_report_or_warn(folder) if explanation.files or found is None else None
    if as_json:
        keys = ("num_images", "num_wrong", "num_shown", "layers", "files")
        facts = {"run": folder.path, **{key: getattr(explanation, key) for key in keys}, "report": report}
        click.echo(json.dumps({**facts, **(own.to_json(found) if found is not None else {})}, default=str))
    elif found is None or len(found):
        _show(context, config, folder, explanation, report)
    if found is not None:
        own.report_errors(found)


def _show(
    context: click.Context, config: ExplainConfig, folder: RunFolder, explanation: Explanation, report: Path | None
) -> None:
    from fastcifar.cli.output import show_next_on_run, table

    if explanation.num_wrong is not None:
        count, kind = explanation.num_wrong, "misclassified"
        if config.correct:
            count, kind = explanation.num_images - explanation.num_wrong, "correctly classified"
        click.echo(f"{count:,} of {explanation.num_images:,} test images {kind} by {folder.path}")
        if isinstance(config.select, str) and explanation.num_shown < config.n:
            has_earlier = not explanation.num_shown and (folder.explain / "index.csv").is_file()
            stays = "; the earlier explanation stays" if has_earlier else ""
            click.echo(f"{config.n:,} requested, {explanation.num_shown:,} found{stays}")
    if explanation.own is not None:
        own.show_images(explanation.own)
        click.echo()
        click.echo(table([("run", folder.path), *own.summary(explanation.own)]))
    own.show_files(*explanation.files, report)
    show_next_on_run(context, folder, all_correct=explanation.num_wrong == 0 and not explanation.num_shown)
