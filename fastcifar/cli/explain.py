"""`fastcifar explain`: where the network looked."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

import click

from fastcifar.cli import options, settings
from fastcifar.cli.settings import as_flags, flags, typed
from fastcifar.config import ExplainConfig

FILES_OF_RUNS = (".pt", ".safetensors", ".html", ".yaml", ".json", ".csv", ".npz", ".txt")


@click.command(cls=options.SettingsCommand)
@click.argument("words", nargs=-1, metavar="[RUN]")
@settings.add(settings.options_of(ExplainConfig))
@click.option(
    "--image",
    "images",
    multiple=True,
    type=options.PATH,
    help="Explain your own pictures instead, of any size: a file, a folder or a pattern such as 'cats/*.jpg'; may be "
    "given several times.",
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
    images: tuple[Path, ...],
    model: str | None,
    data_dir: Path | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Draw class activation maps of test images of RUN (a name or path; the latest if not given).

    Without options: the 25 misclassified images of largest loss, and what spoke for the predicted class. A grid, a
    sheet for each image with all layers and methods, a table and the maps go to explain/ in the folder of the run;
    those of your own pictures to explain/pictures/.
    """
    asked = ExplainConfig(**given)
    if not isinstance(asked.select, str) and typed(context, ("n",)):
        raise click.UsageError("--n cannot be given beside the images that --select names", context)
    if asked.select != "random" and typed(context, ("seed",)):
        raise click.UsageError("--seed is of --select random alone", context)
    if images and (unused := typed(context, ("n", "select", "correct", "seed"))):
        raise click.UsageError(f"{flags(unused)}: about test images, and cannot be given beside --image", context)

    import json

    from fastcifar.cli.output import Bars, command_line, show_next, write_report
    from fastcifar.explain import explain_run
    from fastcifar.training import find_run
    from fastcifar.training.device import choose_threads

    run, more = _sorted_out(context, words, runs_dir, bool(images))
    choose_threads(threads)
    folder = find_run(run, runs_dir, trained=True)
    with Bars() as bars:
        made = explain_run(
            folder, asked, pictures=images + more, data_dir=data_dir, device=device, trusted=model, reporter=bars
        )
    report = write_report(folder)
    if as_json:
        facts = {
            "run": str(folder.path),
            "num_images": made.num_images,
            "num_wrong": made.num_wrong,
            "num_shown": made.num_shown,
            "layers": {name: list(size) for name, size in zip(made.layers, made.sizes, strict=False)},
            "files": [str(file) for file in made.files],
            "report": report and str(report),
            "pictures": list(made.pictures),
        }
        click.echo(json.dumps(facts))
        return
    if made.num_wrong is not None:
        click.echo(f"{made.num_wrong:,} of {made.num_images:,} test images misclassified by {folder.path}")
        if isinstance(asked.select, str) and made.num_shown < asked.n:
            nothing = "" if made.num_shown else ": nothing to draw, and what was drawn before stays"
            click.echo(f"{asked.n:,} were asked for, {made.num_shown:,} are there{nothing}")
    for picture in made.pictures:
        classes = ", ".join(f"{name} {probability:.1%}" for name, probability in picture["classes"])
        click.echo(f"{picture['file']}: {classes}")
    sheets = [file for file in made.files if file.parent.name == "sheets"]
    for file in made.files[: len(made.files) - len(sheets)]:
        click.echo(file)
    if sheets:
        click.echo(f"{sheets[0].parent}/ ({len(sheets)} sheets)")
    if report:
        click.echo(report)
    needed = as_flags(context, typed(context, ["model", "data_dir"]))
    if made.num_wrong == 0 and not made.num_shown:
        show_next(command_line("fastcifar", "explain", folder.path, "--correct", *needed))
    show_next(command_line("fastcifar", "eval", folder.path, *needed))


def _sorted_out(
    context: click.Context, words: tuple[str, ...], runs_dir: Path, with_pictures: bool
) -> tuple[str | None, tuple[Path, ...]]:
    """The run that `words` name, and the pictures among them: of `--image *.png` a shell makes several words."""
    runs, pictures = [], []
    for word in words:
        path = options.PATH.convert(word, None, context) if word else Path()
        if word and _is_picture(path, runs_dir) and (with_pictures or path.is_file()):
            pictures.append(path)
        else:
            runs.append(word)
    if pictures and not with_pictures:
        raise click.UsageError(f"{pictures[0]} is not a run; give pictures with --image", context)
    if len(runs) > 1:
        raise click.UsageError(f"got {len(runs)} runs, {', '.join(map(repr, runs))}; expected one at most", context)
    return (runs[0] if runs else None), tuple(pictures)


def _is_picture(path: Path, runs_dir: Path) -> bool:
    """Whether there is something at `path` (or a pattern matches) that stands for no run."""
    from fastcifar.training.run_folder import is_run

    if path.is_file():
        return path.suffix not in FILES_OF_RUNS or not is_run(path, runs_dir)
    return (os.path.exists(path) or bool(glob.glob(str(path)))) and not is_run(path, runs_dir)
