"""The training step against plain PyTorch: what do autocast, memory layout, allocator and fused optimizer bring?

    python -m benchmarks.plain_step --data-dir data --json

The same network, batch and optimiser; `plain` is eager float32 in contiguous memory, as a tutorial writes it, and each
line after it adds one thing. `fastcifar` is the step of `fastcifar train`; `+benchmark` lets cuDNN choose algorithms by
measuring them, `+cudagraphs` is torch.compile with `mode="reduce-overhead"`. One batch again and again: no loader.
`recipe` is our recipe for that network, with its batch size, optimiser and smaller images for a share of the steps: as
many images as a whole training goes through, by the time that they take.
"""

from __future__ import annotations

import math
from pathlib import Path

import click
import torch

from benchmarks import Command, check_measured, options, save_rows, show
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

NAMES = (
    "plain", "+channels_last", "+bf16", "+allocator", "fastcifar", "fastcifar+benchmark", "fastcifar+compile",
    "fastcifar+cudagraphs", "recipe",
)  # fmt: skip
ON_ONE_DEVICE = {"+allocator": "cpu", "fastcifar+benchmark": "cuda", "fastcifar+cudagraphs": "cuda"}
"""What has no meaning on another one."""
RECIPES = {"resnet18": "resnet18", "small": "fast"}
MIN_S = 3.0
WARM_UP_STEPS = {"cuda": 5}  # compiled graphs are recorded in the third; 2 on other devices


def images_per_s(
    name: str, data_dir: str, model: str, batch_size: int, device: torch.device, repeats: int, min_s: float
) -> list[float]:
    """The rates of one candidate, in this process. min_s: of each measurement; at least three steps."""
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
        torch.backends.cudnn.benchmark = name == "fastcifar+benchmark"
        called = network
        if name in ("fastcifar+compile", "fastcifar+cudagraphs"):
            called = torch.compile(network, mode="reduce-overhead" if name.endswith("graphs") else None)  # type: ignore[assignment]
        ours = TrainStep(called, network, make_optimizer(network, config), config, choose_amp(device, "auto"))  # type: ignore[arg-type]

        def step() -> None:
            ours(images, labels)
    else:
        for layer in network.modules():  # a hook keeps the layers those of torch: see fastcifar.models.fused_norm
            layer.register_forward_hook(lambda module, given, result: None)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=level >= NAMES.index("+bf16")):
                loss = torch.nn.functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def rate() -> float:
        for _ in range(WARM_UP_STEPS.get(device.type, 2)):
            step()
        count = max(3, math.ceil(min_s / measure.timed(step, device)))

        def steps() -> None:  # a GPU computes one while the next one is launched: it is waited for once
            for _ in range(count):
                step()

        return count * len(labels) / measure.timed(steps, device)

    whole, rates = images, []
    for _ in range(repeats):
        seconds, done = 0.0, 0.0  # of an image, on average
        for side, until in (*config.progressive, (whole.shape[-1], 1.0)):
            images = resize(whole, side)
            seconds += (until - done) / rate()
            done = until
        rates.append(1 / seconds)
    return rates


@click.command(cls=Command)
@click.option("--model", default="resnet18", show_default=True, type=click.Choice(MODELS))
@click.option("--batch-size", default=256, show_default=True, type=click.IntRange(2))
@click.option("--without", multiple=True, type=click.Choice(NAMES[1:]), help="Leave this row out.")
@click.option(
    "--one-process", is_flag=True, help="All repeats of a row in one process: for a GPU, where a start costs more."
)
@click.option(
    "--min-s", default=MIN_S, show_default=True, type=click.FloatRange(0, min_open=True), help="Of one measurement."
)
@options("data_dir", "device", "repeats")
@click.option("--only", hidden=True, type=click.Choice(NAMES))
def main(
    data_dir: str, model: str, batch_size: int, without: tuple[str, ...], one_process: bool, min_s: float, device: str,
    repeats: int, save: bool, as_json: bool, only: str | None,
) -> None:  # fmt: skip
    """Images per second of a training step, from plain PyTorch to ours."""
    torch_device = usable_device(device)
    if only is not None:
        count = repeats if one_process else 1
        click.echo(" ".join(map(str, images_per_s(only, data_dir, model, batch_size, torch_device, count, min_s))))
        return
    flags: list[object] = ["--data-dir", data_dir, "--model", model, "--batch-size", batch_size, "--device", device]
    flags += ["--min-s", min_s, *(["--one-process", "--repeats", repeats] if one_process else [])]
    names = [name for name in NAMES if ON_ONE_DEVICE.get(name, torch_device.type) == torch_device.type]
    names = [name for name in names if name not in without]
    rounds = 1 if one_process else repeats
    rows = [rate.row() for rate in measure_in_processes("benchmarks.plain_step", tuple(names), flags, rounds)]
    plain = rows[0]["images_per_s"]
    for row in rows:
        row["times_plain"] = round(row["images_per_s"] / plain, 2) if plain and row["images_per_s"] else None
    columns = ("name", "images_per_s", "images_per_s_min", "images_per_s_max", "times_plain", "note")
    show(rows, columns, as_json)
    check_measured(rows)
    if save:
        save_rows(__file__, rows, environment(f"one batch of {data_dir}, {model}, batch {batch_size}", torch_device))


if __name__ == "__main__":
    main()
