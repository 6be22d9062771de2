"""How many augmented images a second each loader delivers, beside the others and beside the limit, in one call.

    python benchmarks/loaders.py --data-dir data --json

The work: batches of 512, crop 4 + flip + cutout 8 + normalise, float32, every batch a tensor that its receiver may
keep (FFCV's and DALI's are views of a ring). `limit-copy-cast` copies and casts as many contiguous bytes into such a
batch, from the same allocator, with as many threads. Peers that are not installed are left out, by name:
`pip install -r benchmarks/peers.txt`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import Command, save_rows, show  # noqa: E402
from benchmarks.peers import CROP_PADDING, CUTOUT_SIZE, Work  # noqa: E402
from fastcifar import AugmentConfig, make_loader, measure, open_beton  # noqa: E402
from fastcifar.errors import UsageError  # noqa: E402
from fastcifar.loaders import missing_part  # noqa: E402
from fastcifar.loaders.base import usable_device  # noqa: E402
from fastcifar.measure import Epoch, forever  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "uint8": torch.uint8}
COLUMNS = ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "first_batch_s", "note")


def ours(name: str, work: Work, dtype: torch.dtype, missing: Exception | None) -> Epoch:
    """One of our loaders."""
    if missing is not None:
        raise ImportError(str(missing))
    augment = AugmentConfig(crop_padding=CROP_PADDING, cutout_size=CUTOUT_SIZE)
    settings: dict[str, Any] = {"batch_size": work.batch_size, "device": work.device, "dtype": dtype}
    return forever(make_loader(work.beton, augment, loader=name, **settings).epoch)


def limit(work: Work, dtype: torch.dtype) -> Epoch:
    """Copy and cast contiguous images into fresh batches: what no loader can beat."""
    data = torch.from_numpy(work.images).to(work.device)
    if data.device.type == "cpu":
        from fastcifar.augment.numba_kernel import Recycler

        memory = Recycler()

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return torch.from_numpy(memory.empty(math.prod(shape) * dtype.itemsize)).view(dtype).view(shape)
    else:

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=data.device)

    def epoch() -> Iterator[tuple[torch.Tensor]]:
        for images in data.split(work.batch_size)[: len(data) // work.batch_size]:
            yield (empty(tuple(images.shape), dtype).copy_(images),)

    return epoch


def peers(work: Work) -> dict[str, Callable[[], Epoch]]:
    """The others, imported only when they are built."""

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
@click.option("--data-dir", default="data", show_default=True, envvar="FASTCIFAR_DATA_DIR", help="With train.beton.")
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(1))
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(list(DTYPES)))
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="For everybody.")
@click.option("--repeats", default=measure.MIN_REPEATS, show_default=True, type=click.IntRange(measure.MIN_REPEATS))
@click.option(
    "--limit-s",
    default=4.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Leave an epoch that takes longer.",
)
@click.option("--only", multiple=True, help="These names only.")
@click.option(
    "--save/--no-save", default=True, show_default=True, help="Add a line to benchmarks/results/loaders.jsonl."
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
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
    """Loader alone, ours and the others', round after round."""
    torch.set_num_threads(threads)
    on = usable_device(device)
    beton = open_beton(Path(data_dir) / "train.beton")
    if len(beton) < batch_size or min(beton.image_shape[:2]) < CUTOUT_SIZE:
        raise UsageError(
            f"{beton.path}: has {len(beton)} images of {beton.image_shape[0]}x{beton.image_shape[1]}; "
            f"expected a batch of {batch_size} or more, of {CUTOUT_SIZE}x{CUTOUT_SIZE} or more"
        )
    work = Work(
        beton=beton.path,
        images=np.ascontiguousarray(beton.images(np.arange(len(beton)))),
        labels=beton.labels,
        mean=beton.mean,
        std=beton.std,
        batch_size=batch_size,
        threads=threads,
        device=device,
    )
    names = ("resident", "ffcv", "albumentations")
    missing = {name: missing_part(name) for name in names}  # imported now: that is not the first batch's time
    candidates: dict[str, Callable[[], Epoch]] = {
        name: (lambda name=name: ours(name, work, DTYPES[dtype], missing[name])) for name in names
    }
    candidates["limit-copy-cast"] = lambda: limit(work, DTYPES[dtype])
    candidates |= peers(work)
    unknown = sorted(set(only) - set(candidates))
    if unknown:
        raise UsageError(f"--only is {unknown[0]!r}; expected one of: {', '.join(candidates)}")
    if only:
        candidates = {name: build for name, build in candidates.items() if name in only}
    tell = (lambda line: None) if as_json else (lambda line: click.echo(line, err=True))
    rates = measure.measure_rates(candidates, repeats=repeats, limit_s=limit_s, device=on, tell=tell)
    rows = [rate.row() for rate in rates]
    manifest = measure.circumstances(f"{len(beton):,} images of {data_dir}, batch {batch_size}, {dtype}", on)
    show(rows, COLUMNS, as_json)
    if save:
        save_rows(__file__, rows, manifest)


if __name__ == "__main__":
    main()
