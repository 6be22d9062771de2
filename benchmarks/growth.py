"""From 10,000 to 500,000 images: rate and memory of `resident`, and of `ffcv` by window (`--shuffle window`).

    python -m benchmarks.growth --json

`memory_mib` is what RssAnon + RssShmem of a fresh process grew by, from after its imports to its largest during an
epoch: the beton for `resident`, the pages of a window for `ffcv`. Images are random bytes of 32x32, written to a
temporary folder (1.6 GB).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import Command, options, row, save_rows, show
from benchmarks.subprocesses import failure
from fastcifar.bench.results import environment
from fastcifar.converters import Sample, Source, convert

MIN_IMAGES = 512  # one batch
RUN = """if True:
    import json, sys, time
    import torch
    torch.set_num_threads(2)
    from fastcifar import AugmentConfig, make_loader, open_beton
    from fastcifar.loaders import missing_part
    from benchmarks.subprocesses import anonymous_memory
    name, path = sys.argv[1:]
    if missing_part(name) is not None:
        sys.exit(3)
    import fastcifar.augment.numba_kernel
    before = anonymous_memory()
    beton = open_beton(path, in_memory=name == "resident")
    loader = make_loader(beton, AugmentConfig(), loader=name, shuffle="full" if name == "resident" else "window")
    peak, rates = 0, []
    for epoch in range(4):
        begin, count = time.perf_counter(), 0
        for number, batch in enumerate(loader.epoch(epoch)):
            count += len(batch.labels)
            if number % 50 == 0:
                peak = max(peak, anonymous_memory() - before)
        rates.append(count / (time.perf_counter() - begin))
    rates = sorted(rates[1:])
    print(json.dumps({"images_per_s": round(rates[1]), "images_per_s_min": round(rates[0]),
                      "images_per_s_max": round(rates[2]), "memory_mib": round(peak / 2**20)}), flush=True)
    import os
    os._exit(0)
"""


class RandomSplit:
    """Random bytes, the same each time they are read."""

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images

    def __len__(self) -> int:
        return self._num_images

    def __iter__(self) -> Iterator[Sample]:
        random = np.random.default_rng(0)
        for begin in range(0, self._num_images, 1_000):
            images = random.integers(0, 256, (1_000, 32, 32, 3), dtype=np.uint8)
            for i, image in enumerate(images[: self._num_images - begin]):
                yield Sample(image, i % 10)


def parse_sizes(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    """The value of --sizes."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < MIN_IMAGES:
        raise click.BadParameter(f"{text!r}; expected integers of at least {MIN_IMAGES}, e.g. 10000,50000")
    return sizes


@click.command(cls=Command)
@click.option("--sizes", default="10000,50000,200000,500000", show_default=True, callback=parse_sizes)
@options()
def main(sizes: list[int], save: bool, as_json: bool) -> None:
    """Rate and memory by number of images."""
    rows: list[dict[str, Any]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            splits = {"train": RandomSplit(size), "test": RandomSplit(10)}
            convert(Source(description="random", class_names=tuple("abcdefghij"), splits=splits), folder)
            path = Path(folder) / "train.beton"
            for name in ("resident", "ffcv"):
                answer = subprocess.run([sys.executable, "-c", RUN, name, str(path)], capture_output=True, text=True)
                if answer.returncode not in (0, 3):
                    raise failure(name, answer.stderr)
                values = {"note": "skipped: not installed"} if answer.returncode else json.loads(answer.stdout)
                beton_mib = round(path.stat().st_size / 2**20)
                rows.append(row(name, num_images=size, beton_mib=beton_mib, **values))
                click.echo(json.dumps(rows[-1]), err=True)
    columns = ("name", "num_images", "images_per_s", "images_per_s_min", "images_per_s_max", "memory_mib", "beton_mib")
    show(rows, columns, as_json)
    if save:
        save_rows(__file__, rows, environment("random images of 32x32"))


if __name__ == "__main__":
    main()
