"""The augmentation kernels alone: ours, the same work by torch operations, and a copy of as many bytes.

    python -m benchmarks.kernels --data-dir data --device cuda --batch-size 25000 --json

Ours is Triton on a GPU and Numba on a CPU. The work: crop 4 + flip + cutout 8 + normalise, with the parameters, the
images and the order of an epoch on the device; once more with brightness and contrast. `gb_per_s` counts what must be
read and written, and nothing else.
A large batch shows the kernel; with one of 512 a GPU waits for its launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import Command, check_measured, options, save_rows, show
from benchmarks.loaders import DTYPES, check_size, limit, work_of
from benchmarks.peers import CROP_PADDING, CUTOUT_SIZE
from fastcifar import AugmentConfig, open_beton
from fastcifar.augment.kernel import KernelConfig, make_kernel
from fastcifar.augment.params import sample_params
from fastcifar.augment.torch_kernel import TorchKernel
from fastcifar.bench.measure import Epoch, measure_throughput
from fastcifar.bench.results import environment
from fastcifar.data.beton import Beton
from fastcifar.loaders.base import usable_device

AUGMENT = AugmentConfig(crop_padding=CROP_PADDING, cutout_size=CUTOUT_SIZE)
COLUMNS = ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "gb_per_s", "times_copy", "note")


def launches(make: Callable[[KernelConfig], Any], beton: Beton, config: KernelConfig, batch_size: int) -> Epoch:
    """An epoch of launches of a kernel, without a loader."""
    kernel, num = make(config), len(beton)
    data, offsets = map(kernel.to_device, (beton.read_all(), beton.offsets))
    params = kernel.load_params(sample_params(config.augment, 0, 0, num, beton.image_shape))
    order = kernel.to_device(np.random.default_rng(0).permutation(num))
    batches = [order[start : start + batch_size] for start in range(0, num - batch_size + 1, batch_size)]

    def epoch() -> Iterator[tuple[torch.Tensor]]:
        for indices in batches:
            yield (kernel.launch(data, offsets, indices, params)(),)

    return epoch


@click.command(cls=Command)
@click.option("--batch-size", default=512, show_default=True, type=click.IntRange(1))
@click.option("--dtype", "dtypes", multiple=True, default=["bfloat16", "float32"], type=click.Choice(list(DTYPES)))
@click.option("--limit-s", default=4.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Of an epoch.")
@options("data_dir", "device", "repeats")
def main(
    data_dir: str, batch_size: int, dtypes: tuple[str, ...], limit_s: float, device: str, repeats: int, save: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Kernels, round after round."""
    torch_device = usable_device(device)
    beton = open_beton(Path(data_dir) / "train.beton")
    check_size(beton, batch_size)
    work = work_of(beton, batch_size, torch.get_num_threads(), device)
    candidates: dict[str, Callable[[], Epoch]] = {}
    for dtype in dtypes:
        candidates[f"copy, {dtype}"] = lambda dtype=dtype: limit(work, DTYPES[dtype])
        for channels_last in (True, False):
            config = KernelConfig(
                image_shape=beton.image_shape, augment=AUGMENT, mean=beton.mean, std=beton.std, dtype=DTYPES[dtype],
                channels_last=channels_last, device=torch_device,
            )  # fmt: skip
            for name, make in (("fastcifar", make_kernel), ("torch", TorchKernel)):
                label = f"{name}, {dtype}" + ("" if channels_last else ", planar")
                candidates[label] = lambda make=make, config=config: launches(make, beton, config, batch_size)
            if channels_last:
                toned = replace(config, augment=replace(AUGMENT, brightness=20, contrast=0.2))
                label = f"fastcifar, {dtype}, brightness and contrast"
                candidates[label] = lambda toned=toned: launches(make_kernel, beton, toned, batch_size)
    log = (lambda line: None) if as_json else (lambda line: click.echo(line, err=True))
    results = measure_throughput(candidates, repeats=repeats, limit_s=limit_s, device=torch_device, log=log)
    rows, copies = [], {}
    for result in results:
        row, dtype = result.row(), result.name.split(", ")[1]
        rate, num_bytes = row["images_per_s"], math.prod(beton.image_shape) * (1 + DTYPES[dtype].itemsize)
        if result.name.startswith("copy"):
            copies[dtype] = rate
        if rate and copies[dtype]:
            row |= {"gb_per_s": round(rate * num_bytes / 1e9, 1), "times_copy": round(rate / copies[dtype], 3)}
        rows.append(row)
    show(rows, COLUMNS, as_json)
    check_measured(rows, candidates)
    if save:
        save_rows(__file__, rows, environment(f"{len(beton):,} images of {data_dir}, batch {batch_size}", torch_device))


if __name__ == "__main__":
    main()
