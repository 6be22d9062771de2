"""What this machine's loaders and training steps reach: for `fastcifar bench` and for benchmarks/."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from fastcifar import measure
from fastcifar.config import AugmentConfig, TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.loaders import Batch, Loader, make_loader, missing_part
from fastcifar.models import make_model
from fastcifar.models.probe import place
from fastcifar.training.device import choose_amp, keep_freed_memory
from fastcifar.training.optimizer import make_optimizer
from fastcifar.training.step import Step

WORK = AugmentConfig(crop_padding=4, flip=True, cutout_size=8)
REPEAT_S = 2.0  # how long one measurement of training steps should take; at least one step
Tell = Callable[[str], None]


def work_for(beton: Beton) -> AugmentConfig:
    """The work, with a cutout that fits into small images."""
    return replace(WORK, cutout_size=min(WORK.cutout_size, *beton.image_shape[:2]))


def loader_rows(
    beton: Beton, *, batch_size: int, device: torch.device, dtype: torch.dtype, repeats: int, tell: Tell
) -> list[dict[str, Any]]:
    """Each loader that can be used here, alone."""
    loaders: list[Loader] = []

    names = ("ffcv",) if beton.encoding == "jpeg" else ("resident", "ffcv", "albumentations")
    missing = {name: missing_part(name) for name in names}  # imported now: that is not the first batch's time

    def build(name: str) -> measure.Epoch:
        if missing[name] is not None:
            raise ImportError(str(missing[name]))
        loader = make_loader(beton, work_for(beton), batch_size=batch_size, loader=name, device=device, dtype=dtype)
        loaders.append(loader)
        return measure.forever(loader.epoch)

    try:
        candidates = {name: (lambda name=name: build(name)) for name in names}
        return [rate.row() for rate in measure.measure_rates(candidates, repeats=repeats, device=device, tell=tell)]
    finally:
        for loader in loaders:
            loader.close()


def step_rows(
    beton: Beton, models: tuple[str, ...], *, batch_size: int, device: torch.device, repeats: int, tell: Tell
) -> list[dict[str, Any]]:
    """The training step of each model: alone on one batch, and fed by the loader, with the share of waiting for it."""
    if device.type == "cpu":
        keep_freed_memory()  # as `train` does
    amp = choose_amp(device, "auto")
    loader = make_loader(beton, work_for(beton), batch_size=batch_size, device=device)
    rows = []
    try:
        for name in models:
            tell(f"training step of {name}")
            config = TrainConfig.from_settings(model=name, lr=0.01)
            model = place(make_model(config.model, len(beton.class_names), beton.image_shape), device)
            step = Step(model, model, make_optimizer(model, config), config, amp)
            rows += _steps(name, step, loader, device, repeats)
    finally:
        loader.close()
    return rows


def _steps(name: str, step: Step, loader: Loader, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    batches = _endless(loader)
    batch, size = next(batches), loader.config.batch_size
    once = min(measure.seconds(lambda: step(batch.images, batch.labels), repeats=1, device=device))
    count = max(1, math.floor(REPEAT_S / once))
    waited: list[float] = []

    def alone() -> None:
        for _ in range(count):
            step(batch.images, batch.labels)

    def together() -> None:
        waiting = 0.0
        for _ in range(count):
            begin = time.perf_counter()
            fresh = next(batches)
            waiting += time.perf_counter() - begin
            step(fresh.images, fresh.labels)
        waited.append(waiting)

    times: dict[str, list[float]] = {"alone": [], "together": []}
    together()
    waited.clear()
    for _ in range(repeats):  # in turn: a noisy minute meets both
        for kind, run in (("alone", alone), ("together", together)):
            measure.synchronise(device)
            begin = time.perf_counter()
            run()
            measure.synchronise(device)
            times[kind].append(time.perf_counter() - begin)
    batches.close()
    rows = []
    for kind, taken in times.items():
        rates = measure.Rate(f"{name}, step {kind}", [count * size / seconds for seconds in taken])
        rows.append(rates.row())
    shares = [wait / taken for wait, taken in zip(waited, times["together"], strict=True)]
    rows[-1]["waiting_share"] = round(median(shares), 5)
    return rows


def _endless(loader: Loader) -> Generator[Batch, None, None]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1
