"""`fastcifar bench`: what the loaders and the training step reach here."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fastcifar.cli import options
from fastcifar.cli.settings import as_flags, typed
from fastcifar.config import MODELS


@click.command()
@click.option("--batch-size", type=click.IntRange(2), default=512, show_default=True, help="Images in a batch.")
@click.option(
    "--model", "models", multiple=True, type=click.Choice(MODELS), help="Step of this network; both if not given."
)
@click.option("--steps/--no-steps", default=True, show_default=True, help="Measure training steps too.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "uint8"]),
    default="float32",
    show_default=True,
    help="Of the batches.",
)
@click.option("--repeats", type=click.IntRange(5), default=5, show_default=True, help="Measurements of each.")
@options.device
@options.threads
@options.data_dir
@options.as_json
@click.pass_context
def bench(
    context: click.Context,
    /,
    batch_size: int,
    models: tuple[str, ...],
    steps: bool,
    dtype: str,
    repeats: int,
    device: str,
    threads: int | None,
    data_dir: Path,
    as_json: bool,
) -> None:
    """Measure the loaders alone, a training step alone, and both together, on train.beton.

    Images a second, the median of the repeats, which are taken in turn. The work: crop 4, flip, cutout 8
    (less in smaller images), normalise.
    """
    import logging

    import torch

    from fastcifar import measure
    from fastcifar.bench import loader_rows, step_rows
    from fastcifar.cli.output import command_line, show_next
    from fastcifar.loaders import open_for
    from fastcifar.training.device import choose_device, choose_threads

    log = logging.getLogger("fastcifar.bench")
    choose_threads(threads)
    on = choose_device(device)
    beton = open_for("resident", data_dir / "train.beton")
    rows = loader_rows(
        beton, batch_size=batch_size, device=on, dtype=getattr(torch, dtype), repeats=repeats, tell=log.info
    )
    if steps:
        rows += step_rows(beton, models or MODELS, batch_size=batch_size, device=on, repeats=repeats, tell=log.info)
    about = measure.circumstances(f"{len(beton):,} images of {beton.path}, batch {batch_size}, {dtype}", on)
    if as_json:
        click.echo(json.dumps({**about, "rows": rows}))
        return
    columns = ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "first_batch_s", "waiting_share", "note")
    used = [column for column in columns if any(row.get(column) is not None for row in rows)]
    click.echo(measure.table(rows, used))
    where = about["gpu"] or f"{about['machine']}, {about['threads']} threads"
    click.echo(f"\n{about['data']}; {where}; torch {about['versions']['torch']}")
    show_next(command_line("fastcifar", "train", "--recipe", "fast", *as_flags(context, typed(context, ["data_dir"]))))
