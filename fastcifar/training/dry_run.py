"""What a run would do, measured by a few of its steps, which are then discarded: nothing is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastcifar.config import TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.errors import UsageError
from fastcifar.models import builder, count_parameters
from fastcifar.system.memory import peak_memory
from fastcifar.training.data import Loaders
from fastcifar.training.device import prepare_device, standard_torch_defaults
from fastcifar.training.distributed import Distributed
from fastcifar.training.initial_weights import log_notes, read_initial_weights
from fastcifar.training.pace import fit_steps, make_discarded_step, measure_pace, with_number_as_lr
from fastcifar.training.progress import Reporter, SilentReporter, stages_of
from fastcifar.training.schedule import Schedule


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
    """With the calibration on the validation images."""
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
    config: TrainConfig,
    reporter: Reporter | None = None,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    betons: Sequence[Beton] | None = None,
) -> RunPlan:
    """Open the data, make the network and train it for a few steps on each image size; measure time and memory.

    runs_dir: where `init` may name a run. betons: the training and test images, if they are open already. Nothing is
    downloaded but the description of a network of the Hugging Face hub. Raises what `train` would raise at its start:
    DataError (4), CheckpointError (6), UsageError (2); and UsageError under torchrun.
    """
    distributed, reporter = Distributed.from_environment(), reporter or SilentReporter()
    if distributed.world_size > 1:
        raise UsageError("a dry run measures one process; start it without torchrun")
    measured = with_number_as_lr(config)
    device = prepare_device(config.runtime, distributed)
    builder(config.model)  # an unknown name fails before the data is read
    initial = None if config.init is None else read_initial_weights(config.init, runs_dir)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with closing(Loaders(config, device, distributed, betons)) as loaders:
        step, notes = make_discarded_step(measured, loaders, device, distributed, initial)
        log_notes(notes)
        num_parameters = count_parameters(step.network)
        pace = measure_pace(step, measured, loaders, distributed, reporter)
        num_steps, notes = (pace.num_steps, []) if config.max_minutes is None else fit_steps(pace, distributed)
        log_notes(notes)
        Schedule(step.optimizer, measured, num_steps, pace.steps_per_epoch)  # it may refuse the settings
        full_size = loaders.info.image_shape[:2]
        stages = tuple(
            SizeStage(
                image_size=(side, side) if side else full_size,
                num_steps=end - begin,
                step_s=pace.step_s(side),
                num_measured=len(pace.step_seconds[side]),
            )
            for side, begin, end in stages_of(measured, num_steps)
        )
        memory_bytes, memory_kind = _memory(device)
        return RunPlan(
            config=config if config.optimizer.lr == "auto" else measured,
            loader=loaders.choice.name,
            loader_reason=loaders.choice.reason,
            device=str(device),
            amp=step.amp,
            num_parameters=num_parameters,
            num_train_images=loaders.num_train,
            num_val_images=loaders.num_val,
            num_test_images=loaders.test.num_images,
            steps_per_epoch=pace.steps_per_epoch,
            num_steps=num_steps,
            stages=stages,
            validation_s=pace.validation_s,
            test_s=pace.test_s,
            memory_bytes=memory_bytes,
            memory_kind=memory_kind,
        )


def _memory(device: torch.device) -> tuple[int, str]:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "the most that torch had allocated on the GPU"
    if device.type == "mps":
        return torch.mps.driver_allocated_memory(), "what torch has allocated on the GPU"
    return peak_memory(), "the peak of this process, with torch and the images"
