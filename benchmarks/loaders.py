"""Augmented images per second of each loader, of other libraries, and of a limit, in one call.

    python -m benchmarks.loaders --data-dir data --json

The work: batches of 512, crop 4 + flip + cutout 8 + normalise, float32, every batch a tensor that its receiver may
keep (FFCV's and DALI's are views of a ring). `limit-copy-cast` copies and casts as many contiguous bytes into such
batches, three in turn, from the same allocator, with as many threads. Peers that are not installed are left out, by
name: `pip install -r benchmarks/peers.txt`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import Command, check_measured, options, save_rows, show
from benchmarks.peers import CROP_PADDING, CUTOUT_SIZE, Work
from fastcifar import AugmentConfig, make_loader, open_beton
from fastcifar.bench.measure import Epoch, measure_throughput
from fastcifar.bench.results import environment
from fastcifar.data.beton import Beton
from fastcifar.errors import UsageError
from fastcifar.loaders import missing_part
from fastcifar.loaders.base import usable_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "uint8": torch.uint8}
COLUMNS = ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "first_batch_s", "note")


def check_size(beton: Beton, batch_size: int) -> None:
    """Raise UsageError unless the images make a batch, and the cutout fits into them."""
    if len(beton) < batch_size or min(beton.image_shape[:2]) < CUTOUT_SIZE:
        raise UsageError(
            f"{beton.path}: has {len(beton)} images of {beton.image_shape[0]}x{beton.image_shape[1]}; "
            f"expected a batch of {batch_size} or more, of {CUTOUT_SIZE}x{CUTOUT_SIZE} or more"
        )


def work_of(beton: Beton, batch_size: int, threads: int, device: str) -> Work:
    """What the peers get."""
    return Work(
        beton=beton.path,
        images=np.ascontiguousarray(beton.images(np.arange(len(beton)))),
        labels=beton.labels,
        mean=beton.mean,
        std=beton.std,
        batch_size=batch_size,
        threads=threads,
        device=device,
    )


def ours(name: str, work: Work, dtype: torch.dtype) -> Epoch:
    """One of our loaders."""
    augment = AugmentConfig(crop_padding=CROP_PADDING, cutout_size=CUTOUT_SIZE)
    settings: dict[str, Any] = {"batch_size": work.batch_size, "device": work.device, "dtype": dtype}
    return make_loader(work.beton, augment, loader=name, **settings).__iter__


def limit(work: Work, dtype: torch.dtype) -> Epoch:
    """Copy and cast contiguous images into three batches in turn, as many as a loader needs at least: one is prepared,
    one delivered, and the caller may still have the one before."""
    data = torch.from_numpy(work.images).to(work.device)
    if data.device.type == "cpu":
        from fastcifar.augment.numba_kernel import BufferPool

        memory = BufferPool()

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return torch.from_numpy(memory.empty(math.prod(shape) * dtype.itemsize)).view(dtype).view(shape)
    else:

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=data.device)

    def epoch() -> Iterator[tuple[torch.Tensor]]:
        others: deque[torch.Tensor] = deque(maxlen=2)
        for images in data.split(work.batch_size)[: len(data) // work.batch_size]:
            batch = empty(tuple(images.shape), dtype).copy_(images)
            others.append(batch)
            yield (batch,)

    return epoch


def peers(work: Work) -> dict[str, Callable[[], Epoch]]:
    """Loaders of other libraries, imported when they are built."""

    def build(module: str, function: str = "build") -> Callable[[], Epoch]:
        def later() -> Epoch:
            import importlib

            return getattr(importlib.import_module(f"benchmarks.peers.{module}"), function)(work)

        return later

    return {
        "stock-ffcv": build("stock_ffcv"),
        "albumentations-dataloader": build("albumentations_dataloader"),
        "torchvision-v1": build("torchvision_transforms"),
        "torchvision-v2": build("torchvision_transforms", "build_v2"),
        "kornia": build("kornia_batched"),
        "dali": build("dali_pipeline"),
        "airbench": build("airbench"),
    }


@click.command(cls=Command)
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(1))
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(list(DTYPES)))
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="Of every candidate.")
@click.option(
    "--limit-s",
    default=4.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Stop an epoch after so many seconds.",
)
@click.option("--only", multiple=True, help="These names only.")
@options("data_dir", "device", "repeats")
def main(
    data_dir: str,
    batch_size: int,
    dtype: str,
    device: str,
    threads: int,
    repeats: int,
    limit_s: float,
    only: tuple[str, ...],
    save: bool,
    as_json: bool,
) -> None:
    """Loaders alone, ours and others, round after round."""
    torch.set_num_threads(threads)
    torch_device = usable_device(device)
    beton = open_beton(Path(data_dir) / "train.beton")
    check_size(beton, batch_size)
    work = work_of(beton, batch_size, threads, device)
    names = ("resident", "ffcv", "albumentations")
    for name in names:
        missing_part(name)  # imports it now: not a part of the first batch
    candidates: dict[str, Callable[[], Epoch]] = {
        name: (lambda name=name: ours(name, work, DTYPES[dtype])) for name in names
    }
    candidates["limit-copy-cast"] = lambda: limit(work, DTYPES[dtype])
    candidates |= peers(work)
    unknown = sorted(set(only) - set(candidates))
    if unknown:
        raise UsageError(f"--only is {unknown[0]!r}; expected one of: {', '.join(candidates)}")
    if only:
        candidates = {name: build for name, build in candidates.items() if name in only}
    log = (lambda line: None) if as_json else (lambda line: click.echo(line, err=True))
    results = measure_throughput(candidates, repeats=repeats, limit_s=limit_s, device=torch_device, log=log)
    rows = [result.row() for result in results]
    about = environment(f"{len(beton):,} images of {data_dir}, batch {batch_size}, {dtype}", torch_device)
    show(rows, COLUMNS, as_json)
    check_measured(rows, ("resident", "limit-copy-cast"))
    if save:
        save_rows(__file__, rows, about)


if __name__ == "__main__":
    main()
