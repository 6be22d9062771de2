"""The training step against plain PyTorch: what do autocast, memory layout, allocator and fused optimizer bring?

    python -m benchmarks.plain_step --data-dir data --json

The same network, batch and optimiser; `plain` is eager float32 in contiguous memory, as a tutorial writes it, and each
line after it adds one thing. `fastcifar` is the step of `fastcifar train`. One batch again and again: no loader.
`recipe` is our recipe for that network, with its batch size, optimiser and smaller images for a share of the steps: as
many images as a whole training goes through, by the time that they take.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch

from benchmarks import Command, options, save_rows, show
from benchmarks.subprocesses import measure_in_processes
from fastcifar import make_loader, recipes
from fastcifar.bench import measure
from fastcifar.bench.results import environment
from fastcifar.config import MODELS, TrainConfig
from fastcifar.loaders.base import usable_device
from fastcifar.models import make_model
from fastcifar.training.device import choose_amp, keep_freed_memory
from fastcifar.training.optimizer import make_optimizer
from fastcifar.training.step import TrainStep, resize

NAMES = ("plain", "+channels_last", "+bf16", "+allocator", "fastcifar", "fastcifar+compile", "recipe")
RECIPES = {"resnet18": "resnet18", "small": "fast"}
MIN_S = 3.0


def images_per_s(name: str, data_dir: str, model: str, batch_size: int, device: torch.device) -> float:
    """The rate of one candidate, in this process."""
    level = NAMES.index(name)
    on_cpu = device.type == "cpu"
    if level >= NAMES.index("+allocator") and on_cpu:
        keep_freed_memory()
    layout = torch.channels_last if level >= 1 else torch.contiguous_format
    config = TrainConfig.from_settings(model=model, lr=0.01, batch_size=batch_size)
    if name == "recipe":
        config = recipes.load(RECIPES[model]).config
    beton, batch_size = Path(data_dir) / "train.beton", config.batch_size
    loader = make_loader(beton, batch_size=batch_size, device=device, channels_last=level >= 1)
    images, labels, _ = next(iter(loader.epoch(0)))
    network: torch.nn.Module = make_model(config.model, len(loader.beton.class_names)).to(device)
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    if level >= NAMES.index("fastcifar"):
        called = torch.compile(network) if name.endswith("compile") else network
        ours = TrainStep(called, network, make_optimizer(network, config), config, choose_amp(device, "auto"))  # type: ignore[arg-type]

        def step() -> None:
            ours(images, labels)
    else:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=level >= NAMES.index("+bf16")):
                loss = torch.nn.functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def rate() -> float:
        step()
        step()
        measure.synchronise(device)
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < MIN_S or count < 3:
            step()
            measure.synchronise(device)
            count += 1
        return count * len(labels) / (time.perf_counter() - begin)

    whole, seconds, done = images, 0.0, 0.0  # of an image, on average
    for side, until in (*config.progressive, (whole.shape[-1], 1.0)):
        images = resize(whole, side)
        seconds += (until - done) / rate()
        done = until
    return 1 / seconds


@click.command(cls=Command)
@click.option("--model", default="resnet18", show_default=True, type=click.Choice(MODELS))
@click.option("--batch-size", default=256, show_default=True, type=click.IntRange(2))
@options("data_dir", "device", "repeats")
@click.option("--only", hidden=True, type=click.Choice(NAMES))
def main(
    data_dir: str, model: str, batch_size: int, device: str, repeats: int, save: bool, as_json: bool, only: str | None
) -> None:
    """Images per second of a training step, from plain PyTorch to ours."""
    if only is not None:
        click.echo(images_per_s(only, data_dir, model, batch_size, usable_device(device)))
        return
    flags: list[object] = ["--data-dir", data_dir, "--model", model, "--batch-size", batch_size, "--device", device]
    rows = [rate.row() for rate in measure_in_processes("benchmarks.plain_step", NAMES, flags, repeats)]
    plain = rows[0]["images_per_s"]
    for row in rows:
        row["times_plain"] = round(row["images_per_s"] / plain, 2) if plain and row["images_per_s"] else None
    columns = ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "times_plain", "note")
    show(rows, columns, as_json)
    if save:
        about = environment(f"one batch of {data_dir}, {model}, batch {batch_size}", usable_device(device))
        save_rows(__file__, rows, about)


if __name__ == "__main__":
    main()
