"""`fastcifar bench`: throughput of the loaders and of training steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fastcifar.cli import options
from fastcifar.cli.command import Command
from fastcifar.cli.settings import as_flags, given_on_command_line
from fastcifar.config import MODELS, TrainConfig


@click.command(cls=Command, short_help="Measure loaders and training steps on this machine.")
@click.option(
    "--batch-size", type=click.IntRange(2), default=TrainConfig.batch_size, show_default=True, help="Images in a batch."
)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Choice(MODELS),
    help="Measure the step of this network; both if not given.",
)
@click.option("--steps/--no-steps", default=True, show_default=True, help="Measure training steps too.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "uint8"]),
    default="float32",
    show_default=True,
    help="dtype of the batches.",
)
@click.option("--repeats", type=click.IntRange(5), default=5, show_default=True, help="Repeats of each measurement.")
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

    Images per second, the median of the repeats, which alternate. The augmentation: crop 4, flip, cutout 8
    (smaller in small images), normalise.
    """
    import logging

    import torch

    from fastcifar.bench import bench_loaders, bench_steps
    from fastcifar.bench.results import environment, format_table
    from fastcifar.cli.output import command_line, show_next
    from fastcifar.loaders import open_for
    from fastcifar.training.device import choose_device, choose_threads

    log = logging.getLogger("fastcifar.bench")
    choose_threads(threads)
    target = choose_device(device)
    beton = open_for("resident", data_dir / "train.beton")
    settings: dict[str, Any] = {"batch_size": batch_size, "device": target, "repeats": repeats, "log": log.info}
    rows = bench_loaders(beton, dtype=getattr(torch, dtype), **settings)
    if steps:
        rows += bench_steps(beton, models or MODELS, **settings)
    about = environment(f"{len(beton):,} images of {beton.path}, batch {batch_size}, {dtype}", target)
    if as_json:
        click.echo(json.dumps({**about, "rows": rows}))
        return
    columns = ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "first_batch_s", "waiting_share", "note")
    used = [column for column in columns if any(row.get(column) is not None for row in rows)]
    click.echo(format_table(rows, used))
    machine = about["gpu"] or f"{about['machine']}, {about['threads']} threads"
    click.echo(f"\n{about['data']}; {machine}; torch {about['versions']['torch']}")
    folder = as_flags(context, given_on_command_line(context, ["data_dir"]))
    show_next(command_line("fastcifar", "train", "--recipe", "fast", *folder))
