"""The LR range test: steps per second, next to torch-lr-finder on the same network, batch size and images.

    python -m benchmarks.lr_find --data-dir data --json

Each takes its own way through the same images: ours with what `fastcifar lr-find` does on this machine, theirs as its
README says (float32, a torch DataLoader). Each measurement is a process of its own, in turn.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch

from benchmarks import Command, check_measured, options, save_rows, show
from benchmarks.peers.torchvision_transforms import Images
from benchmarks.subprocesses import measure_in_processes
from fastcifar import open_beton
from fastcifar.bench import measure
from fastcifar.bench.results import environment
from fastcifar.config import LrRangeTestConfig, ModelConfig, TrainConfig
from fastcifar.loaders.base import usable_device
from fastcifar.models import make_model

WARM_UP = 3
RATES = {"start_lr": 1e-6, "end_lr": 1e-2}  # neither diverges: all steps are made


def ours(data_dir: str, model: str, batch_size: int, steps: int, device: torch.device) -> float:
    """Steps per second."""
    from contextlib import closing

    from fastcifar.training.data import Loaders
    from fastcifar.training.device import prepare_device
    from fastcifar.training.distributed import Distributed
    from fastcifar.training.lr_finder import make_initial_network, run_lr_range_test
    from fastcifar.training.progress import SilentReporter

    config = TrainConfig.from_settings(data_dir=data_dir, model=model, batch_size=batch_size, device=str(device))
    prepare_device(config.runtime, Distributed())
    with closing(Loaders(config, device, Distributed())) as loaders:
        network = make_initial_network(config, loaders.info, device)

        def run(num: int) -> None:
            test = LrRangeTestConfig(num_steps=num, **RATES)
            run_lr_range_test(config, network, loaders.train, test, SilentReporter())

        return _rate(run, steps, device)


def torch_lr_finder(data_dir: str, model: str, batch_size: int, steps: int, device: torch.device) -> float:
    """Steps per second."""
    from torch_lr_finder import LRFinder
    from torchvision.transforms import v2

    beton = open_beton(Path(data_dir) / "train.beton", in_memory=True)
    mean, std = (beton.mean / 255).tolist(), (beton.std / 255).tolist()
    crop = [v2.ToImage(), v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*crop, v2.Normalize(mean, std)])

    images = Images(beton.images(range(len(beton))), beton.labels, transform)
    loader = torch.utils.data.DataLoader(images, batch_size, shuffle=True, num_workers=2)
    network = make_model(ModelConfig(name=model), 10)

    def run(num: int) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=RATES["start_lr"], momentum=0.9)
        finder = LRFinder(network, optimizer, torch.nn.CrossEntropyLoss(), device=device)
        finder.range_test(loader, end_lr=RATES["end_lr"], num_iter=num)
        finder.reset()

    return _rate(run, steps, device)


def _rate(run: object, steps: int, device: torch.device) -> float:
    assert callable(run)
    run(WARM_UP)
    measure.synchronise(device)
    begin = time.perf_counter()
    run(steps)
    measure.synchronise(device)
    return steps / (time.perf_counter() - begin)


PEERS = {"fastcifar": ours, "torch-lr-finder": torch_lr_finder}


@click.command(cls=Command)
@click.option("--model", default="resnet18", show_default=True)
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(2))
@click.option(
    "--steps",
    default=10,
    show_default=True,
    type=click.IntRange(2),
    help="Steps in one measurement, after three for warm-up.",
)
@options("data_dir", "device", "repeats")
@click.option("--only", hidden=True, type=click.Choice(tuple(PEERS)))
def main(
    data_dir: str, model: str, batch_size: int, steps: int, device: str, repeats: int, save: bool, as_json: bool,
    only: str | None,
) -> None:  # fmt: skip
    """Steps of the range test per second."""
    if only is not None:
        click.echo(PEERS[only](data_dir, model, batch_size, steps, usable_device(device)) * batch_size)
        return
    flags: list[object] = [
        "--data-dir",
        data_dir,
        "--model",
        model,
        "--batch-size",
        batch_size,
        "--steps",
        steps,
        "--device",
        device,
    ]
    rows = [rate.row() for rate in measure_in_processes("benchmarks.lr_find", tuple(PEERS), flags, repeats)]
    for row in rows:
        row["steps_per_s"] = None if row["images_per_s"] is None else round(row["images_per_s"] / batch_size, 3)
    columns = ("name", "steps_per_s", "images_per_s", "images_per_s_min", "images_per_s_max", "note")
    show(rows, columns, as_json)
    check_measured(rows)
    if save:
        about = environment(f"{data_dir}, {model}, batch {batch_size}", usable_device(device))
        save_rows(__file__, rows, about)


if __name__ == "__main__":
    main()
