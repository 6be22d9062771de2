"""A training step alone, the loader alone, and both together: how long does training wait for data?

    python benchmarks/step.py --data-dir data --json

`waiting_share` is the part of the time together that was spent in `next(batches)`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import Command, save_rows, show  # noqa: E402
from fastcifar import measure, open_beton  # noqa: E402
from fastcifar.bench import loader_rows, step_rows  # noqa: E402
from fastcifar.config import MODELS  # noqa: E402
from fastcifar.loaders.base import usable_device  # noqa: E402


@click.command(cls=Command)
@click.option("--data-dir", default="data", show_default=True, envvar="FASTCIFAR_DATA_DIR")
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(2))
@click.option("--device", default="cpu", show_default=True)
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(5))
@click.option("--save/--no-save", default=True, show_default=True, help="To benchmarks/results/step.jsonl.")
@click.option("--json", "as_json", is_flag=True)
def main(data_dir: str, batch_size: int, device: str, repeats: int, save: bool, as_json: bool) -> None:
    """Step, loader, and both."""
    on = usable_device(device)
    beton = open_beton(Path(data_dir) / "train.beton", in_memory=True)

    def tell(line: str) -> None:
        click.echo(line, err=True)

    rows = loader_rows(beton, batch_size=batch_size, device=on, dtype=torch.float32, repeats=repeats, tell=tell)
    rows += step_rows(beton, MODELS, batch_size=batch_size, device=on, repeats=repeats, tell=tell)
    columns = ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "waiting_share", "note")
    show(rows, columns, as_json)
    if save:
        about = measure.circumstances(f"{len(beton):,} images of {data_dir}, batch {batch_size}", on)
        save_rows(__file__, rows, about)


if __name__ == "__main__":
    main()
