"""A training step alone, the loader alone, and both together: how long does training wait for data?

    python -m benchmarks.step --data-dir data --json

`waiting_share` is the part of the time together that was spent in `next(batches)`.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from benchmarks import Command, options, save_rows, show
from fastcifar import open_beton
from fastcifar.bench import bench_loaders, bench_steps
from fastcifar.bench.results import environment
from fastcifar.config import MODELS
from fastcifar.loaders.base import usable_device


@click.command(cls=Command)
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(2))
@options("data_dir", "device", "repeats")
def main(data_dir: str, batch_size: int, device: str, repeats: int, save: bool, as_json: bool) -> None:
    """Step, loader, and both."""
    torch_device = usable_device(device)
    beton = open_beton(Path(data_dir) / "train.beton", in_memory=True)

    def log(line: str) -> None:
        click.echo(line, err=True)

    rows = bench_loaders(
        beton, batch_size=batch_size, device=torch_device, dtype=torch.float32, repeats=repeats, log=log
    )
    rows += bench_steps(beton, MODELS, batch_size=batch_size, device=torch_device, repeats=repeats, log=log)
    columns = ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "waiting_share", "note")
    show(rows, columns, as_json)
    if save:
        about = environment(f"{len(beton):,} images of {data_dir}, batch {batch_size}", torch_device)
        save_rows(__file__, rows, about)


if __name__ == "__main__":
    main()
