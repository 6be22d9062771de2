"""Throughput of the loaders and of training steps on this machine: for `fastcifar bench` and for benchmarks/."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat
from statistics import median
from typing import Any

import torch

from fastcifar.bench import measure
from fastcifar.config import AugmentConfig, TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.loaders import Loader, make_loader, missing_part
from fastcifar.loaders.base import loaders_for
from fastcifar.models import make_model
from fastcifar.models.probe import place
from fastcifar.training.device import choose_amp, keep_freed_memory
from fastcifar.training.optimizer import make_optimizer
from fastcifar.training.step import TrainStep

AUGMENT = AugmentConfig(crop_padding=4, flip=True, cutout_size=8)
REPEAT_S = 2.0  # of one measurement of training steps; at least one step
Log = Callable[[str], None]


def _augment_for(beton: Beton) -> AugmentConfig:
    """The augmentation, with a cutout that fits into small images."""
    return replace(AUGMENT, cutout_size=min(AUGMENT.cutout_size, *beton.image_shape[:2]))


def bench_loaders(
    beton: Beton, *, batch_size: int, device: torch.device, dtype: torch.dtype, repeats: int, log: Log
) -> list[dict[str, Any]]:
    """Rows of the loaders alone; those that cannot be used are skipped, with a note."""
    loaders: list[Loader] = []

    names = loaders_for(beton)
    for name in names:
        missing_part(name, beton.encoding)  # imports it now: not a part of the first batch

    def build(name: str) -> measure.Epoch:
        loader = make_loader(beton, _augment_for(beton), batch_size=batch_size, loader=name, device=device, dtype=dtype)
        loaders.append(loader)
        return loader.__iter__

    try:
        candidates = {name: (lambda name=name: build(name)) for name in names}
        results = measure.measure_throughput(candidates, repeats=repeats, device=device, log=log)
        return [result.row() for result in results]
    finally:
        for loader in loaders:
            loader.close()


def bench_steps(
    beton: Beton, models: tuple[str, ...], *, batch_size: int, device: torch.device, repeats: int, log: Log
) -> list[dict[str, Any]]:
    """Rows of the training step of each model: alone on one batch, and with the loader, with the share of waiting."""
    if device.type == "cpu":
        keep_freed_memory()  # as `fastcifar train` does
    amp = choose_amp(device, "auto")
    loader = make_loader(beton, _augment_for(beton), batch_size=batch_size, device=device)
    rows = []
    try:
        for name in models:
            log(f"training step of {name}")
            config = TrainConfig.from_settings(model=name, lr=0.01)
            model = place(make_model(config.model, len(beton.class_names), beton.image_shape), device)
            step = TrainStep(model, model, make_optimizer(model, config), config, amp)
            rows += _steps(name, step, loader, device, repeats)
    finally:
        loader.close()
    return rows


def _steps(name: str, step: TrainStep, loader: Loader, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    batches = chain.from_iterable(repeat(loader))  # epoch after epoch
    batch, batch_size = next(batches), loader.config.batch_size
    step(batch.images, batch.labels)  # warm-up
    count = max(1, math.floor(REPEAT_S / measure.timed(lambda: step(batch.images, batch.labels), device)))
    waiting_s: list[float] = []

    def alone() -> None:
        for _ in range(count):
            step(batch.images, batch.labels)

    def together() -> None:
        waiting = 0.0
        for _ in range(count):
            begin = time.perf_counter()
            loaded = next(batches)
            waiting += time.perf_counter() - begin
            step(loaded.images, loaded.labels)
        waiting_s.append(waiting)

    times: dict[str, list[float]] = {"alone": [], "together": []}
    together()
    waiting_s.clear()
    for _ in range(repeats):  # in turn: noise affects both
        for kind, run in (("alone", alone), ("together", together)):
            times[kind].append(measure.timed(run, device))
    rows = []
    for kind, seconds in times.items():
        images_per_s = [count * batch_size / each for each in seconds]
        rows.append(measure.Throughput(f"{name}, step {kind}", images_per_s).row())
    shares = [waiting / total for waiting, total in zip(waiting_s, times["together"], strict=True)]
    rows[-1]["waiting_share"] = round(median(shares), 5)
    return rows
