"""`fastcifar explain`: class activation maps."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

import click

from fastcifar.cli import options, settings
from fastcifar.cli.settings import as_flags, flags, given_on_command_line
from fastcifar.config import ExplainConfig

RUN_FILE_SUFFIXES = (".pt", ".safetensors", ".html", ".yaml", ".json", ".csv", ".npz", ".txt")


@click.command(cls=options.SettingsCommand, short_help="Draw class activation maps of the test images of a run.")
@click.argument("words", nargs=-1, metavar="[RUN]", shell_complete=options.complete_runs)
@settings.add(settings.options_of(ExplainConfig))
@options.run_option
@click.option(
    "--image",
    "images",
    multiple=True,
    type=options.PATH,
    help="Explain your own images instead, of any size: a file, a folder or a pattern such as 'cats/*.jpg'; may be "
    "repeated.",
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
    images: tuple[Path, ...],
    model: str | None,
    data_dir: Path | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Draw class activation maps of test images of RUN (a name or path; by default the latest).

    By default: the 25 misclassified images of largest loss, and the evidence for the predicted class. A grid, a sheet
    for each image with all layers and methods, a table and the maps go to explain/ in the run folder; those of your
    own images to explain/images/.
    """
    config = ExplainConfig(**overrides)
    if not isinstance(config.select, str) and given_on_command_line(context, ("n",)):
        raise click.UsageError("--n cannot be combined with images named by --select", context)
    if config.select != "random" and given_on_command_line(context, ("seed",)):
        raise click.UsageError("--seed needs --select random", context)
    if images and (unused := given_on_command_line(context, ("n", "select", "correct", "seed"))):
        raise click.UsageError(f"{flags(unused)} selects test images; cannot be combined with --image", context)

    import json

    from fastcifar.cli.output import Bars, command_line, show_next, write_report
    from fastcifar.explain import explain_run
    from fastcifar.training import find_run
    from fastcifar.training.device import choose_threads

    words += () if named_run is None else (named_run,)
    run, more_images = _run_and_images(context, words, runs_dir, bool(images))
    choose_threads(threads)
    folder = find_run(run, runs_dir, trained=True)
    with Bars() as bars:
        explanation = explain_run(
            folder, config, images=images + more_images, data_dir=data_dir, device=device, trusted=model, reporter=bars
        )
    report = write_report(folder)
    if as_json:
        click.echo(json.dumps({"run": folder.path, **vars(explanation), "report": report}, default=str))
        return
    if explanation.num_wrong is not None:
        wrong = f"{explanation.num_wrong:,} of {explanation.num_images:,} test images"
        click.echo(f"{wrong} misclassified by {folder.path}")
        if isinstance(config.select, str) and explanation.num_shown < config.n:
            nothing = "" if explanation.num_shown else ": nothing drawn; an earlier explanation stays"
            click.echo(f"{config.n:,} requested, {explanation.num_shown:,} found{nothing}")
    for image in explanation.images:
        classes = ", ".join(f"{name} {probability:.1%}" for name, probability in image["classes"])
        click.echo(f"{image['file']}: {classes}")
    sheets = [file for file in explanation.files if file.parent.name == "sheets"]
    for file in explanation.files:
        if file not in sheets:
            click.echo(file)
    if sheets:
        click.echo(f"{sheets[0].parent}/ ({len(sheets)} sheet{'s' * (len(sheets) > 1)})")
    if report:
        click.echo(report)
    needed = as_flags(context, given_on_command_line(context, ["model", "data_dir"]))
    if explanation.num_wrong == 0 and not explanation.num_shown:
        show_next(command_line("fastcifar", "explain", folder.path, "--correct", *needed))
    show_next(command_line("fastcifar", "eval", folder.path, *needed))


def _run_and_images(
    context: click.Context, words: tuple[str, ...], runs_dir: Path, with_images: bool
) -> tuple[str | None, tuple[Path, ...]]:
    """The run that `words` name, and the images among them: a shell expands `--image *.png` to several words."""
    runs, images = [], []
    for word in words:
        path = options.PATH.convert(word, None, context) if word else Path()
        if word and _is_image(path, runs_dir) and (with_images or path.is_file()):
            images.append(path)
        else:
            runs.append(word)
    if images and not with_images:
        raise click.UsageError(f"{images[0]} is not a run; give images with --image", context)
    if len(runs) > 1:
        raise click.UsageError(f"got {len(runs)} runs, {', '.join(map(repr, runs))}; expected at most one", context)
    return (runs[0] if runs else None), tuple(images)


def _is_image(path: Path, runs_dir: Path) -> bool:
    """Whether `path` exists, or is a pattern that matches, and does not stand for a run."""
    from fastcifar.training.run_folder import is_run

    if path.is_file() and path.suffix not in RUN_FILE_SUFFIXES:
        return True
    return (os.path.exists(path) or bool(glob.glob(str(path)))) and not is_run(path, runs_dir)
