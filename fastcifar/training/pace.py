"""The pace of a run, measured by a few steps of a network that is then discarded; and the steps that fit in a time.

For `train --dry-run` and `max_minutes`.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from fastcifar.config import TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.inference.predict import predict
from fastcifar.loaders import Batch, Loader
from fastcifar.models.layers import train_mode
from fastcifar.models.state import generators_kept
from fastcifar.training.data import Loaders
from fastcifar.training.device import prepare_device, standard_torch_defaults, synchronise
from fastcifar.training.distributed import Distributed
from fastcifar.training.initial_weights import InitialWeights, Note, log_notes, prepare_network
from fastcifar.training.lr_finder import make_initial_network
from fastcifar.training.progress import Reporter, SilentReporter, duration, num_steps_of, stages_of
from fastcifar.training.step import TrainStep, make_train_step, resize

log = logging.getLogger(__name__)
MEASURED_STEPS = 10
MEASURED_S = 10.0
"""For each image size, after one step: at most so many, and none but one that would begin later."""
MEASURED_SHARE = 0.05
"""Of `max_minutes`: MEASURED_S is at most this."""
EVAL_BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long the parts of a run take."""

    config: TrainConfig
    steps_per_epoch: int
    step_seconds: Mapping[int | None, tuple[float, ...]]
    """Of each measured step, by the side of its images (None: their own size)."""
    validation_s: float
    """Of one validation."""
    test_s: float
    """Of the test, and of the calibration on the validation images."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole run, as `epochs` and `max_steps` say."""
        return num_steps_of(self.config, self.steps_per_epoch)

    def step_s(self, side: int | None) -> float:
        """Seconds of a step on images of this side: the mean of those measured."""
        seconds = self.step_seconds[side]
        return sum(seconds) / len(seconds)

    def training_s(self, num_steps: int) -> float:
        """Seconds of the steps of a run of `num_steps`."""
        stages = stages_of(self.config, num_steps)
        return sum((end - begin) * self.step_s(side) for side, begin, end in stages)

    def run_s(self, num_steps: int) -> float:
        """Seconds of a run of `num_steps`: its steps, a validation after each epoch, and the test."""
        num_validations = -(-num_steps // self.steps_per_epoch)
        return self.training_s(num_steps) + num_validations * self.validation_s + self.test_s

    def steps_within(self, seconds: float) -> int:
        """The largest number of steps, at most `num_steps`, whose run takes no longer; 0 if none does."""
        fastest = min(map(self.step_s, self.step_seconds))
        low, high = 0, min(self.num_steps, max(int(seconds / fastest), 0))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.run_s(middle) <= seconds else (low, middle - 1)
        return low


def make_discarded_step(
    config: TrainConfig,
    loaders: Loaders,
    device: torch.device,
    distributed: Distributed,
    initial: InitialWeights | None = None,
) -> tuple[TrainStep, list[Note]]:
    """The step of a new network, and what there is to say of its initial weights, which do not change what it costs."""
    network = make_initial_network(config, loaders.info, device, pretrained=False)
    notes = prepare_network(network, config, loaders.info, initial)
    return make_train_step(network, config, loaders.train, device, distributed), notes


def with_number_as_lr(config: TrainConfig) -> TrainConfig:
    """The settings with a learning rate, any one for 'auto': it does not change what a step costs."""
    if config.optimizer.lr == "auto":
        config = config.with_settings(lr=None, min_lr=0.0)
    return config.with_settings(lr=config.peak_lr)


def measure_pace(
    step: TrainStep,
    config: TrainConfig,
    loaders: Loaders,
    distributed: Distributed,
    reporter: Reporter,
    limit_s: float = MEASURED_S,
) -> Pace:
    """Train some steps on images of each size, and evaluate some batches. Several processes measure together.

    limit_s: seconds for each size, after two steps.
    """
    step_seconds = _measure_steps(step, config, loaders, distributed, reporter, limit_s)
    per_image_s = _seconds_per_image(step, loaders.val or loaders.test, "none")
    validation_s = 0.0 if loaders.val is None else per_image_s * loaders.val.num_images
    test_s = validation_s + per_image_s * loaders.test.num_images
    if config.tta != "none":
        test_s += _seconds_per_image(step, loaders.test, config.tta) * loaders.test.num_images
    return Pace(
        config=config,
        steps_per_epoch=len(loaders.train),
        step_seconds=step_seconds,
        validation_s=validation_s,
        test_s=test_s,
    )


def resolve_max_minutes(
    config: TrainConfig,
    loaders: Loaders,
    device: torch.device,
    distributed: Distributed,
    reporter: Reporter,
    begin: float,
) -> tuple[TrainConfig, list[Note]]:
    """The settings with `max_minutes` replaced by the number of steps that fit, as `max_steps`; and what to log.

    Weights and random generators of the run are not affected. begin: the `time.monotonic()` from which the minutes
    count. Several processes agree on the number that fits in all.
    """
    if config.max_minutes is None:
        return config, []
    pace = _measure_new_network(config, loaders, device, distributed, reporter)
    num_steps, notes = fit_steps(pace, distributed, time.monotonic() - begin)
    return config.with_settings(max_minutes=None, max_steps=num_steps), notes


@standard_torch_defaults()
def max_steps_of_all(
    configs: Iterable[TrainConfig], betons: Sequence[Beton], reporter: Reporter | None = None
) -> int | None:
    """The `max_steps` of runs with these settings, the same for all, with which none takes longer than `max_minutes`;
    None if all their steps fit anyway. Logs it.

    betons: the training and test images. Raises what `train` would raise at its start: DataError (4), UsageError (2).
    """
    distributed, reporter = Distributed.from_environment(), reporter or SilentReporter()
    limits: list[tuple[int, list[Note]]] = []
    for config in configs:
        device = prepare_device(config.runtime, distributed)
        with closing(Loaders(config, device, distributed, betons)) as loaders, distributed.connect(device):
            pace = _measure_new_network(config, loaders, device, distributed, reporter)
            num_steps, notes = fit_steps(pace, distributed)
        if num_steps < pace.num_steps:
            limits.append((num_steps, notes))
    if not limits:
        log.info("max_minutes %g: all steps fit", config.max_minutes)
        return None
    num_steps, notes = min(limits)
    log_notes(notes)
    return num_steps


def fit_steps(pace: Pace, distributed: Distributed, elapsed_s: float = 0.0) -> tuple[int, list[Note]]:
    """The number of steps that fits in what is left of `max_minutes`, in all processes, and what to log."""
    minutes = pace.config.max_minutes
    assert minutes is not None
    (negative,) = distributed.all_reduce_max(-pace.steps_within(60 * minutes - elapsed_s))
    num_steps = -negative
    if num_steps < 1:
        least = duration(pace.run_s(1) + elapsed_s)
        message = f"max_minutes {minutes:g}: a run of 1 step takes about {least}, more than this; training 1 step"
        return 1, [(logging.WARNING, message)]
    step_s = pace.training_s(num_steps) / num_steps
    each = f"{step_s:,.0f} s" if step_s >= 10 else f"{step_s * 1_000:,.{0 if step_s >= 0.01 else 2}f} ms"
    epochs = num_steps / pace.steps_per_epoch
    message = f"max_minutes {minutes:g}: {num_steps:,} steps ({epochs:,.1f} epochs) at {each} a step"
    if num_steps < min(pace.steps_per_epoch, pace.num_steps):
        return num_steps, [(logging.WARNING, f"{message}: not all images; allow more minutes")]
    return num_steps, [(logging.INFO, message)]


def _measure_new_network(
    config: TrainConfig, loaders: Loaders, device: torch.device, distributed: Distributed, reporter: Reporter
) -> Pace:
    """The pace for `max_minutes`; random generators are restored."""
    assert config.max_minutes is not None
    measured = with_number_as_lr(config)
    limit_s = min(MEASURED_S, MEASURED_SHARE * 60 * config.max_minutes)
    with generators_kept([device]):
        step, _ = make_discarded_step(measured, loaders, device, distributed)
        return measure_pace(step, measured, loaders, distributed, reporter, limit_s)


def _measure_steps(
    step: TrainStep,
    config: TrainConfig,
    loaders: Loaders,
    distributed: Distributed,
    reporter: Reporter,
    limit_s: float,
) -> dict[int | None, tuple[float, ...]]:
    sides = _sides_of(config)
    reporter.begin("measuring", len(sides) * (MEASURED_STEPS + 1))
    train_mode(step.network)
    measured: dict[int | None, tuple[float, ...]] = {}
    with closing(_endless(loaders.train)) as batches:
        for side in sides:
            seconds: list[float] = []
            more = 1
            while more:
                start = time.perf_counter()
                batch = next(batches)
                step(batch.images if side is None else resize(batch.images, side), batch.labels, batch.mix)
                synchronise(batch.images.device)
                seconds.append(time.perf_counter() - start)
                reporter.advance(1)
                more = len(seconds) < 2 or (len(seconds) <= MEASURED_STEPS and sum(seconds[1:]) < limit_s)
                (more,) = distributed.all_reduce_max(more)  # the step of one process waits for those of the others
            measured[side] = tuple(seconds[1:])  # the first one allocates memory, and compiles
    return measured


def _sides_of(config: TrainConfig) -> list[int | None]:
    """The sides of the images of a run (None: their own), each once."""
    shares = [0.0, *(until for _, until in config.progressive), 1.0]
    sides = [*(side for side, _ in config.progressive), None]
    used = [side for side, begin, end in zip(sides, shares, shares[1:], strict=False) if begin < end]
    return list(dict.fromkeys(used))


def _endless(loader: Loader) -> Generator[Batch, None, None]:
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def _seconds_per_image(step: TrainStep, loader: Loader, tta: str) -> float:
    """Of an evaluation: those of the faster of a few batches. The first is warm-up, the last may be of few images."""
    batches, seconds = predict(step.eval_network, loader, amp=step.amp, tta=tta), []
    for _ in range(EVAL_BATCHES):
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        synchronise(batch[0].device)
        seconds.append((time.perf_counter() - start) / len(batch[0]))
    return min(seconds)
