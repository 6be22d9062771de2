"""By number of images and of processes: rate and memory of `resident`, and of `ffcv` by window (`--shuffle window`).

    python -m benchmarks.growth --sizes 10000,100000,1000000 --processes 1,2,4

Several processes deliver their slices of the same batches at the same time, one thread each; one has two threads. Rates
and memory are sums over the processes. `memory_mib` is what RssAnon + RssShmem of a fresh process grew by, from after
its imports to its largest during an epoch: the beton for `resident`, the pages of a window for `ffcv`. Images are
random bytes of 32x32, written to a temporary folder (3 GB for a million).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
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
    name, path, rank, world_size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(2 if world_size == 1 else 1)
    from fastcifar import AugmentConfig, make_loader, open_beton
    from fastcifar.loaders import missing_part
    from benchmarks.subprocesses import anonymous_memory
    if missing_part(name) is not None:
        sys.exit(3)
    import fastcifar.augment.numba_kernel
    before = anonymous_memory()
    beton = open_beton(path, in_memory=name == "resident")
    shuffle = "full" if name == "resident" else "window"
    loader = make_loader(beton, AugmentConfig(), loader=name, shuffle=shuffle, rank=rank, world_size=world_size)
    peak, rates = 0, []
    def run(epoch):
        global peak
        begin, count = time.perf_counter(), 0
        for number, batch in enumerate(loader.epoch(epoch)):
            count += len(batch.labels)
            if number % 50 == 0:
                peak = max(peak, anonymous_memory() - before)
        return count / (time.perf_counter() - begin)
    run(0)
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - begin < 2:
        rates.append(run(len(rates) + 1))
    rates.sort()
    print(json.dumps({"images_per_s": rates[len(rates) // 2], "images_per_s_min": rates[0],
                      "images_per_s_max": rates[-1], "memory_mib": peak / 2**20}), flush=True)
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


def measure(name: str, path: Path, processes: int) -> dict[str, Any]:
    """The sums over `processes` processes that begin together."""
    with ExitStack() as stack:
        started = []
        for rank in range(processes):
            process = subprocess.Popen(
                [sys.executable, "-c", RUN, name, str(path), str(rank), str(processes)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(process.kill)
            started.append(process)
        ready = [process for process in started if process.stdout and process.stdout.readline()]
        for process in ready:
            print(file=process.stdin, flush=True)
        answers = []
        for process in started:
            stdout, stderr = process.communicate()
            if process.returncode == 3:
                return {"note": "skipped: not installed"}
            if process.returncode:
                raise failure(name, stderr, process.returncode)
            answers.append(json.loads(stdout.splitlines()[-1]))
    return {key: round(sum(answer[key] for answer in answers)) for key in answers[0]}


def parse_counts(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    """The value of --sizes or --processes."""
    least, example = (MIN_IMAGES, "10000,50000") if parameter.name == "sizes" else (1, "1,2")
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < least:
        raise click.BadParameter(f"{text!r}; expected integers of at least {least}, e.g. {example}")
    return counts


@click.command(cls=Command)
@click.option("--sizes", default="10000,100000,1000000", show_default=True, callback=parse_counts)
@click.option("--processes", default="1,2,4", show_default=True, callback=parse_counts)
@options()
def main(sizes: list[int], processes: list[int], save: bool, as_json: bool) -> None:
    """Rate and memory by number of images and of processes."""
    rows: list[dict[str, Any]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            splits = {"train": RandomSplit(size), "test": RandomSplit(10)}
            convert(Source(description="random", class_names=tuple("abcdefghij"), splits=splits), folder)
            path = Path(folder) / "train.beton"
            beton_mib = round(path.stat().st_size / 2**20)
            for name in ("resident", "ffcv"):
                for count in processes:
                    values = measure(name, path, count)
                    rows.append(row(name, num_images=size, processes=count, beton_mib=beton_mib, **values))
                    click.echo(json.dumps(rows[-1]), err=True)
    rates = ("images_per_s", "images_per_s_min", "images_per_s_max")
    show(rows, ("name", "num_images", "processes", *rates, "memory_mib", "beton_mib"), as_json)
    if save:
        save_rows(__file__, rows, environment("random images of 32x32"))


if __name__ == "__main__":
    main()
