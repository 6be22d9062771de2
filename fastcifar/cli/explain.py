"""`fastcifar explain`: where the network looked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastcifar import config
from fastcifar.cli import options
from fastcifar.cli.settings import flags, typed
from fastcifar.config import ExplainConfig


class Selection(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A way to select, or the numbers of images."""

    name = f"{'|'.join(config.SELECTIONS)}|index,…"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if not isinstance(value, str) or value in config.SELECTIONS:
            return value
        try:
            parts = [part.strip() for part in value.split(",") if part.strip()]
            if not all(part.isascii() and part.isdigit() for part in parts):
                raise ValueError
            return tuple(map(int, parts))
        except ValueError:
            known = ", ".join(config.SELECTIONS)
            self.fail(
                f"{value!r}; expected one of: {known}; or the numbers of test images, such as 3,14", param, context
            )


class Names(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Names, with commas between them."""

    name = "name,…"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


@click.command()
@click.argument("run", required=False)
@click.option("--n", default=ExplainConfig.n, show_default=True, type=int, help="How many images, at most.")
@click.option(
    "--select",
    default=ExplainConfig.select,
    show_default=True,
    type=Selection(),
    help="Largest loss or confidence first, at random, or these test images.",
)
@click.option("--correct", is_flag=True, help="Rightly classified images instead of misclassified ones.")
@click.option(
    "--layers",
    default=",".join(ExplainConfig.layers),
    show_default=True,
    type=Names(),
    help="Modules of the network; all: its stages.",
)
@click.option(
    "--methods",
    default=",".join(ExplainConfig.methods),
    show_default=True,
    type=Names(),
    help=f"Of {', '.join(config.CAM_METHODS)}; the grid shows the first.",
)
@click.option(
    "--target",
    default=ExplainConfig.target,
    show_default=True,
    metavar="pred|true|both|CLASS",
    help="The class whose evidence is mapped.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Explain this picture of yours instead, of any size; may be given several times.",
)
@click.option("--seed", default=0, show_default=True, type=int, help="Of --select random.")
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
    run: str | None,
    images: tuple[Path, ...],
    model: str | None,
    data_dir: str | None,
    runs_dir: str,
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

    from fastcifar.cli.output import Bars, write_report
    from fastcifar.explain import explain_run
    from fastcifar.training import find_run
    from fastcifar.training.device import choose_threads

    choose_threads(threads)
    folder = find_run(run, runs_dir, trained=True)
    with Bars() as bars:
        made = explain_run(
            folder, asked, pictures=images, data_dir=data_dir, device=device, trusted=model, reporter=bars
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
