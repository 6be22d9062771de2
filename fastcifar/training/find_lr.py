"""The range test with the settings of a run, and its files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastcifar.config import LrRangeTestConfig, TrainConfig
from fastcifar.io.atomic import wrap_write_errors, write_text
from fastcifar.io.figures import figure_writer
from fastcifar.loaders import Loader
from fastcifar.models import builder, make_model
from fastcifar.models.probe import place
from fastcifar.training.checkpoint import DataInfo
from fastcifar.training.data import Loaders
from fastcifar.training.device import (
    choose_amp,
    choose_device,
    choose_threads,
    keep_freed_memory,
    standard_torch_defaults,
)
from fastcifar.training.distributed import Processes
from fastcifar.training.lr_finder import LrCurve, lr_find
from fastcifar.training.optimizer import at_rate, make_optimizer
from fastcifar.training.progress import Reporter
from fastcifar.training.run_folder import create_run
from fastcifar.training.step import Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def find_for(
    config: TrainConfig,
    network: nn.Module,
    loader: Loader,
    amp: str,
    test: LrRangeTestConfig,
    advance: Callable[[int], None] = lambda count: None,
) -> LrCurve:
    """The range test of the run that `config` describes, on `network`, which is left as it was. All rates rise: those
    of Muon's rest keep their ratio to `lr`."""
    config = at_rate(config.with_settings(min_lr=0.0, ema=0.0), test.start_lr)
    optimizer = make_optimizer(network, config)
    step = Step(network, network, optimizer, config, amp)

    def train_step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return step(images, labels)[0]

    batches = ((batch.images, batch.labels) for epoch in range(test.num_steps) for batch in loader.epoch(epoch))
    return lr_find(network, optimizer, batches, test=test, step=train_step, advance=advance)


def first_network(config: TrainConfig, data: DataInfo, device: torch.device) -> nn.Module:
    """The network as a run begins with it, its weights drawn from the seed."""
    torch.manual_seed(config.seed)
    return place(make_model(config.model, len(data.class_names), data.image_shape), device)


def write_curve(curve: LrCurve, folder: Path, chosen: str) -> tuple[Path, ...]:
    """Write lr_find.csv and then lr_find.png, where the suggestion `chosen` is labelled, into `folder`; return the
    paths of those that were written."""
    with wrap_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("lr", "loss", "smoothed_loss"))
    writer.writerows(zip(curve.rates.tolist(), curve.losses.tolist(), curve.smoothed.tolist(), strict=True))
    table = folder / "lr_find.csv"
    write_text(table, text.getvalue())

    def curve_drawn() -> Figure:
        from fastcifar import plotting

        return plotting.lr_curve(curve, chosen)

    with figure_writer(folder, f"the curve is in {table}") as write:
        figure = write("lr_find.png", curve_drawn)
    return (table, figure) if figure else (table,)


@standard_torch_defaults()
def find_in_new_folder(
    config: TrainConfig, test: LrRangeTestConfig, chosen: str, runs_dir: str | os.PathLike[str], reporter: Reporter
) -> tuple[LrCurve, tuple[Path, ...]]:
    """The range test of `fastcifar lr-find`: a fresh network on the images of `config`; its files in a new folder."""
    device = choose_device(config.runtime.device)
    choose_threads(config.runtime.threads)
    if device.type == "cpu":
        keep_freed_memory()
    builder(config.model)  # a name that is wrong is told before the data is read
    with closing(Loaders(config, device, Processes())) as loaders:
        network = first_network(config, loaders.info, device)
        run = create_run(runs_dir, f"lr-find-{config.recipe or config.model.label}")
        try:
            reporter.begin("range test", test.num_steps)
            curve = find_for(
                config, network, loaders.train, choose_amp(device, config.runtime.amp), test, reporter.advance
            )
        except BaseException:
            run.path.rmdir()
            raise
    return curve, write_curve(curve, run.path, chosen)
