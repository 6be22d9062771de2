"""What a run would do, measured by a few of its steps, which are then discarded: nothing is written."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastcifar.config import TrainConfig
from fastcifar.errors import UsageError
from fastcifar.inference.predict import predict
from fastcifar.loaders import Batch, Loader
from fastcifar.models import builder, count_parameters
from fastcifar.models.layers import train_mode
from fastcifar.system.memory import peak_memory
from fastcifar.training.data import Loaders
from fastcifar.training.device import choose_amp, prepare_device, standard_torch_defaults, synchronise
from fastcifar.training.distributed import Distributed
from fastcifar.training.initial_weights import log_notes, prepare_network, read_initial_weights
from fastcifar.training.loss import class_weights_of
from fastcifar.training.lr_finder import make_initial_network
from fastcifar.training.optimizer import make_optimizer
from fastcifar.training.progress import Reporter, SilentReporter, num_steps_of, stages_of
from fastcifar.training.schedule import Schedule
from fastcifar.training.step import TrainStep, resize

MEASURED_STEPS = 10
MEASURED_S = 10.0
"""For each image size, after one step: at most so many, and none but one that would begin later."""
EVAL_BATCHES = 2
"""The first is warm-up, where there are two."""


@dataclass(frozen=True, kw_only=True)
class SizeStage:
    """The steps of a run on images of one size."""

    image_size: tuple[int, int]
    """Height, width."""
    num_steps: int
    step_s: float
    num_measured: int


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run would do."""

    config: TrainConfig
    """`lr` is a number, or 'auto'."""
    loader: str
    loader_reason: str
    device: str
    amp: str
    num_parameters: int
    num_train_images: int
    num_val_images: int
    num_test_images: int
    steps_per_epoch: int
    num_steps: int
    stages: tuple[SizeStage, ...]
    validation_s: float
    """Of one validation."""
    test_s: float
    memory_bytes: int
    memory_kind: str
    """What `memory_bytes` counts, in words."""

    @property
    def num_measured(self) -> int:
        """The steps that were measured."""
        return sum(stage.num_measured for stage in self.stages)

    @property
    def seconds(self) -> float:
        """The expected time of training, validations and test; without a range test and compilation."""
        training_s = sum(stage.num_steps * stage.step_s for stage in self.stages)
        return training_s + self.validation_s * -(-self.num_steps // self.steps_per_epoch) + self.test_s

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; the settings by name."""
        values = {**asdict(self), "settings": self.config.to_settings(), "seconds": self.seconds}
        del values["config"]
        return values


@standard_torch_defaults()
def dry_run(
    config: TrainConfig, reporter: Reporter | None = None, *, runs_dir: str | os.PathLike[str] = "runs"
) -> RunPlan:
    """Open the data, make the network and train it for a few steps on each image size; measure time and memory.

    runs_dir: where `init` may name a run. Nothing is downloaded but the description of a network of the Hugging Face
    hub. Raises what `train` would raise at its start: DataError (4), CheckpointError (6), UsageError (2); and
    UsageError under torchrun.
    """
    distributed, reporter = Distributed.from_environment(), reporter or SilentReporter()
    if distributed.world_size > 1:
        raise UsageError("a dry run measures one process; start it without torchrun")
    lr_is_auto = config.optimizer.lr == "auto"
    # the rate does not change what a step costs
    measured = config.with_settings(lr=None, min_lr=0.0) if lr_is_auto else config
    measured = measured.with_settings(lr=measured.peak_lr)
    device = prepare_device(config.runtime, distributed)
    builder(config.model)  # an unknown name fails before the data is read
    initial = None if config.init is None else read_initial_weights(config.init, runs_dir)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with closing(Loaders(config, device, distributed)) as loaders:
        network = make_initial_network(measured, loaders.info, device, pretrained=False)
        log_notes(prepare_network(network, measured, loaders.info, initial))
        optimizer, steps_per_epoch = make_optimizer(network, measured), len(loaders.train)
        num_steps = num_steps_of(config, steps_per_epoch)
        Schedule(optimizer, measured, num_steps, steps_per_epoch)  # it may refuse the settings
        model: Any = torch.compile(network) if config.runtime.compile else network
        weights = class_weights_of(config.optimizer.class_weights, loaders.train)
        step = TrainStep(model, network, optimizer, measured, choose_amp(device, config.runtime.amp), weights)
        stages = _measure_training(step, loaders, measured, num_steps, reporter)
        per_image_s = _seconds_per_image(step, loaders.val or loaders.test, "none")
        test_s = per_image_s * loaders.test.num_images
        if config.tta != "none":
            test_s += _seconds_per_image(step, loaders.test, config.tta) * loaders.test.num_images
        memory_bytes, memory_kind = _memory(device)
        return RunPlan(
            config=config if lr_is_auto else measured,
            loader=loaders.choice.name,
            loader_reason=loaders.choice.reason,
            device=str(device),
            amp=step.amp,
            num_parameters=count_parameters(network),
            num_train_images=loaders.num_train,
            num_val_images=loaders.num_val,
            num_test_images=loaders.test.num_images,
            steps_per_epoch=steps_per_epoch,
            num_steps=num_steps,
            stages=stages,
            validation_s=per_image_s * loaders.num_val,
            test_s=test_s,
            memory_bytes=memory_bytes,
            memory_kind=memory_kind,
        )


def _measure_training(
    step: TrainStep, loaders: Loaders, config: TrainConfig, num_steps: int, reporter: Reporter
) -> tuple[SizeStage, ...]:
    stages, full_size = stages_of(config, num_steps), loaders.info.image_shape[:2]
    reporter.begin("measuring", len(stages) * (MEASURED_STEPS + 1))
    train_mode(step.network)
    measured = []
    with closing(_endless(loaders.train)) as batches:
        for side, begin, end in stages:
            seconds: list[float] = []
            while len(seconds) < 2 or (len(seconds) <= MEASURED_STEPS and sum(seconds) < MEASURED_S):
                start = time.perf_counter()
                batch = next(batches)
                step(batch.images if side is None else resize(batch.images, side), batch.labels, batch.mix)
                synchronise(batch.images.device)
                seconds.append(time.perf_counter() - start)
                reporter.advance(1)
            steady = seconds[1:]  # the first one allocates memory, and compiles
            measured.append(
                SizeStage(
                    image_size=(side, side) if side else full_size,
                    num_steps=end - begin,
                    step_s=sum(steady) / len(steady),
                    num_measured=len(steady),
                )
            )
    return tuple(measured)


def _endless(loader: Loader) -> Generator[Batch, None, None]:
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def _seconds_per_image(step: TrainStep, loader: Loader, tta: str) -> float:
    """Of an evaluation; the last of a few batches is measured."""
    batches, seconds = predict(step.eval_network, loader, amp=step.amp, tta=tta), 0.0
    for _ in range(EVAL_BATCHES):
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        synchronise(batch[0].device)
        seconds = (time.perf_counter() - start) / len(batch[0])
    return seconds


def _memory(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "the most that torch had allocated on the GPU"
    if device.type == "mps":
        return torch.mps.driver_allocated_memory(), "what torch has allocated on the GPU"
    return peak_memory(), "the peak of this process, with torch and the images"
