"""`fastcifar preview`: augmented training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastcifar.cli import options, settings
from fastcifar.cli.param_types import PATH
from fastcifar.cli.settings import given_on_command_line
from fastcifar.cli.train import train
from fastcifar.config import TrainConfig


@click.command(cls=options.SettingsCommand, short_help="Draw training images next to their augmented versions.")
@click.option(
    "--n", default=8, show_default=True, type=click.IntRange(1, 200), help="Augmented versions of each image."
)
@click.option("--each", default=1, show_default=True, type=click.IntRange(min=1), help="Images of each class.")
@click.option("--out", default="preview.png", show_default=True, type=PATH, help="The PNG file to write.")
@settings.add(settings.RECIPE, settings.SEED, [options.data_dir], settings.LOADER, settings.AUGMENTATION)
@options.as_json
@click.pass_context
def preview(context: click.Context, /, n: int, each: int, out: Path, as_json: bool, **overrides: Any) -> None:
    """Draw training images of every class next to their augmented versions, as a run with these settings sees them."""
    config = settings.train_config(context, dict(overrides))

    import json

    import numpy as np

    from fastcifar.cli.output import show_next, train_command
    from fastcifar.data.beton_file import open_file
    from fastcifar.data.tables import read_tables
    from fastcifar.explain import preview as write_preview

    num_images = write_preview(config, out, n=n, each=each)
    if as_json:
        click.echo(json.dumps({"num_images": num_images, "versions": n, "files": [str(out)]}))
        return
    click.echo(out)
    known = {param.name for param in train.params}
    names = [key for key in given_on_command_line(context, context.params) if key in known]
    labels = read_tables(open_file(Path(config.data.data_dir) / "train.beton")).labels
    recipe = TrainConfig.from_stored(**(context.default_map or {}))  # with batch_size and val_size, no options here
    show_next(train_command(np.bincount(labels).tolist(), *settings.as_flags(context, names), config=recipe))
