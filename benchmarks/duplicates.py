"""Finding duplicates in a dataset repeated to 10,000, 60,000 and 500,000 images: seconds and memory.

    python -m benchmarks.duplicates --data-dir data --json

Each size is the images of both splits, in turn, with a random change of up to 8 grey levels of each pixel, as one
training split; the size of the dataset itself is both splits as they are. `memory_mib` is the largest RSS of a fresh
process that does nothing else, libraries (about 500 MiB) included; `cpu_s` its processor time.
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
from fastcifar import open_beton
from fastcifar.bench.results import environment
from fastcifar.converters import Sample, Source, convert
from fastcifar.data.beton import Beton

RUN = """if True:
    import json, sys, time
    from pathlib import Path
    from fastcifar import open_beton
    from fastcifar.audit.duplicates import find_pairs
    from fastcifar.system.memory import peak_memory
    folder = Path(sys.argv[1])
    splits = {split: open_beton(folder / f"{split}.beton") for split in ("train", "test")}
    begin, cpu = time.perf_counter(), time.process_time()
    pairs = find_pairs(splits)
    print(json.dumps({"seconds": round(time.perf_counter() - begin, 1), "cpu_s": round(time.process_time() - cpu, 1),
                      "memory_mib": round(peak_memory() / 2**20), "num_pairs": len(pairs)}))
"""


class Repeated:
    """The images of betons in turn, until there are enough, changed a little."""

    def __init__(self, betons: list[Beton], num_images: int) -> None:
        self._betons, self._num_images = betons, num_images

    def __len__(self) -> int:
        return self._num_images

    def __iter__(self) -> Iterator[Sample]:
        random, counts = np.random.default_rng(0), [len(beton) for beton in self._betons]
        places = [(beton, index) for beton, count in zip(self._betons, counts, strict=True) for index in range(count)]
        for number in range(self._num_images):
            beton, index = places[number % len(places)]
            image = beton.images([index])[0].astype(np.int16)
            changed = np.clip(image + random.integers(-8, 9, image.shape), 0, 255).astype(np.uint8)
            yield Sample(changed, int(beton.labels[index]))


def parse_sizes(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    """The value of --sizes."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise click.BadParameter(f"{text!r}; expected positive integers, e.g. 10000,60000")
    return sizes


@click.command(cls=Command)
@click.option("--sizes", default="10000,60000,500000", show_default=True, callback=parse_sizes)
@options("data_dir")
def main(sizes: list[int], data_dir: str, save: bool, as_json: bool) -> None:
    """Seconds and memory by number of images."""
    betons = [open_beton(Path(data_dir) / f"{split}.beton") for split in ("train", "test")]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(data_dir)
            if size != sum(map(len, betons)):
                folder = Path(temporary)
                splits = {"train": Repeated(betons, size), "test": Repeated(betons[1:], 10)}
                convert(Source(description="repeated", class_names=betons[0].class_names, splits=splits), folder)
            answer = subprocess.run([sys.executable, "-c", RUN, str(folder)], capture_output=True, text=True)
        if answer.returncode:
            raise failure("find_pairs", answer.stderr, answer.returncode)
        rows.append(row("find_pairs", num_images=size, **json.loads(answer.stdout)))
        click.echo(json.dumps(rows[-1]), err=True)
    show(rows, ("name", "num_images", "seconds", "cpu_s", "memory_mib", "num_pairs"), as_json)
    if save:
        save_rows(__file__, rows, environment(data_dir))


if __name__ == "__main__":
    main()
