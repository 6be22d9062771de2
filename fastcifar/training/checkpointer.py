"""`Checkpointer`: what a checkpoint holds, when one is written, and whether a run can resume from it."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from fastcifar.config import CHANGEABLE, TrainConfig
from fastcifar.errors import CheckpointError, DataError, FastcifarError, UsageError, one_line
from fastcifar.models.probe import place
from fastcifar.system.cpus import cpu_name
from fastcifar.training.checkpoint import load_checkpoint, save_checkpoint
from fastcifar.training.initial_weights import find_initial_weights
from fastcifar.training.progress import Progress, RunContext
from fastcifar.training.run_folder import RunFolder
from fastcifar.training.schedule import LENGTH_INDEPENDENT, Schedule
from fastcifar.training.step import TrainStep
from fastcifar.training.weights import load_weights, save_weights

log = logging.getLogger(__name__)
SAVE_EVERY_S = 300.0


class Checkpointer:
    """Saves and restores a run: network, optimizer, schedule, progress, random generators; and its best weights.

    All processes call each method; rank 0 writes.
    """

    def __init__(self, context: RunContext, step: TrainStep, schedule: Schedule, progress: Progress) -> None:
        self.context, self.distributed = context, context.distributed
        self.run, self.config = context.run, context.config
        self.step, self.schedule, self.progress = step, schedule, progress
        self._environment = {
            "torch": str(torch.__version__),
            "number of threads": torch.get_num_threads(),
            "number of processes": context.distributed.world_size,
            "device": context.device.type,
            "processor": cpu_name(),
            "autocast": step.amp,
        }
        self._saved_at = time.monotonic()
        self._frozen = False

    @property
    def is_due(self) -> bool:
        """True if the last save is minutes ago."""
        return time.monotonic() - self._saved_at > SAVE_EVERY_S

    def freeze(self) -> None:
        """Stop writing last.pt: --max-steps ended the run within an epoch, and a longer run resumes within it."""
        self._frozen = True

    def save(self) -> None:
        """Write weights/last.pt; the existing file becomes weights/previous.pt. The steps up to here are logged."""
        self._saved_at = time.monotonic()
        if self._frozen:
            return
        generators = self.distributed.all_gather(_generator_states(self.context.device))
        if self.distributed.is_main:
            state = {
                "model": self.step.network.state_dict(),
                "step": self.step.state_dict(),
                "schedule": self.schedule.state_dict(),
                "progress": asdict(self.progress),
                "rng": generators,
                "config": self.config.to_settings(),
                "data": self._data(),
                "num_steps": self.context.num_steps,
                "environment": self._environment,
            }
            save_checkpoint(self.run, state)
            self.context.loggers.flush()

    def save_best(self, row: dict[str, Any]) -> None:
        """Write weights/best.safetensors: the weights after the epoch with this row of results."""
        self.progress.best = {key: row[key] for key in ("epoch", "val_loss", "val_accuracy")}
        if self.distributed.is_main:
            network, info = self.step.eval_network, self.context.loaders.info
            save_weights(self.run.best, network, self.config.model, info, epoch=row["epoch"])

    def load_best(self) -> tuple[nn.Module, str]:
        """The network of the best epoch, on the device, and the SHA-256 of its file. Raises CheckpointError."""
        self.distributed.barrier()  # rank 0 has written it
        model, _, metadata = load_weights(self.run.best, trusted=self.config.model.name)
        return place(model, self.context.device), metadata["file_sha256"]

    def restore(self) -> None:
        """Continue from weights/last.pt. Raises CheckpointError, DataError or UsageError if that is not possible."""
        state = load_checkpoint(self.run)
        try:
            self._restore(state)
        except FastcifarError:
            raise
        except Exception as error:  # the file is intact, but not of this run: its content can raise anything
            raise CheckpointError(
                f"{self.run.last}: does not fit the network and settings in {self.run.config} ({one_line(error, 300)})"
            ) from error
        self._check_best()
        progress = self.progress
        log.info("resumed %s after step %d (epoch %d)", self.run.path, progress.step, progress.epoch + 1)
        self.distributed.barrier()  # all have read it before rank 0 writes the next

    def _restore(self, state: dict[str, Any]) -> None:
        self.progress.load_state_dict(state["progress"])
        self._require_same_data(state["data"])
        self._require_same_settings(state["config"])
        progress, steps_per_epoch = self.progress, len(self.context.loaders.train)
        if (
            progress.batch > steps_per_epoch
            or progress.step != progress.epoch * steps_per_epoch + progress.batch
            or progress.seen != progress.batch * self.config.batch_size
        ):
            raise ValueError(f"step {progress.step} is not batch {progress.batch} after {progress.epoch} epochs")
        self._require_possible_length(state["config"], state["num_steps"])
        for name, value in state["environment"].items():
            if value != self._environment.get(name):
                # with other processes batch normalisation is over other parts of a batch, and dropout is drawn again
                how = "" if name in ("number of processes", "autocast") else " in the last bits"
                log.warning(
                    "resumed with %s %s, started with %s: the results may differ%s",
                    *(one_line(name, 80), self._environment.get(name), one_line(value, 80), how),
                )
        self.step.network.load_state_dict(state["model"])
        self.step.load_state_dict(state["step"])
        self.schedule.load_state_dict(state["schedule"])
        if len(state["rng"]) == self.distributed.world_size:
            _restore_generators(state["rng"][self.distributed.rank], self.context.device)

    def _check_best(self) -> None:
        """Forget which epoch was the best if its weights are lost: other weights must not be tested in their place."""
        best = self.progress.best
        if best is None:
            return
        try:
            epoch = load_weights(self.run.best, trusted=self.config.model.name)[2].get("epoch")
            reason = f"{self.run.best}: has the weights of epoch {one_line(epoch, 20)}"
        except CheckpointError as error:
            epoch, reason = None, str(error)
        if epoch == best["epoch"]:
            return
        self.progress.best = None
        # without validation, those of the current epoch may be saved; its end writes them again
        if self.context.loaders.val is not None or epoch != self.progress.epoch + 1:
            log.warning(
                "%s; the best weights, of epoch %s, are lost: the best epoch is tracked again from here",
                *(reason, best["epoch"]),
            )

    def _data(self) -> dict[str, str]:
        """The SHA-256 of both betons, and that of the indices of the training images if these are some of them."""
        loaders = self.context.loaders
        data = {"train": loaders.info.sha256, "test": loaders.test.beton.sha256}
        return data | ({"indices": loaders.indices_sha256} if loaders.indices_sha256 else {})

    def _require_same_data(self, saved: dict[str, str]) -> None:
        data = self._data()
        if saved.get("indices") != data.pop("indices", None):
            raise DataError(
                f"{self.run.path}: was trained on other images of train.beton than these; resume it with the command "
                "that began it, e.g. fastcifar audit"
            )
        for name, sha256 in data.items():
            if saved[name] != sha256:
                was = one_line(saved[name], 16)
                raise DataError(
                    f"{self.run.path}: was trained with a {name}.beton of SHA-256 {was}…; that in "
                    f"{self.config.data.data_dir} has {sha256[:16]}…: convert the same source again or start a new run"
                )

    def _require_same_settings(self, saved: dict[str, Any]) -> None:
        for name, value in self.config.to_settings().items():
            if name not in CHANGEABLE and value != saved.get(name):
                was = one_line(saved.get(name), 80)
                raise CheckpointError(
                    f"{self.run.config}: {name} is {value}, and was {was} when the checkpoint was written; "
                    "restore it or start a new run"
                )

    def _require_possible_length(self, saved: dict[str, Any], saved_num_steps: int) -> None:
        progress, config, path, num_steps = self.progress, self.config, self.run.path, self.context.num_steps
        if config.max_steps is not None and config.max_steps < progress.step:
            raise UsageError(
                f"max_steps is {config.max_steps}; {path} has done {progress.step}: expected {progress.step} or more"
            )
        if num_steps < progress.step:
            begun = -(-progress.step // len(self.context.loaders.train))
            raise UsageError(f"epochs is {config.epochs}; {path} has begun {begun}: expected {begun} or more")
        if config.max_steps is not None and num_steps == saved_num_steps and config.epochs > saved["epochs"]:
            needed = config.epochs * len(self.context.loaders.train)
            raise UsageError(
                f"epochs is {config.epochs}, but max_steps ends {path} after {config.max_steps} steps; expected also "
                f"--max-steps, up to {needed}"
            )
        extendable = config.schedule.name in LENGTH_INDEPENDENT and not config.progressive
        if not extendable and saved_num_steps != num_steps:
            fixed = "progressive resizing" if config.progressive else f"{config.schedule.name} schedule"
            was, epochs, max_steps = (one_line(v, 20) for v in (saved_num_steps, saved["epochs"], saved["max_steps"]))
            raise UsageError(
                f"the {fixed} of {path} was made for {was} steps and cannot be extended to {num_steps}; "
                f"expected the same --epochs ({epochs}) and --max-steps ({max_steps})"
            )


def as_stored(config: TrainConfig, run: RunFolder, runs_dir: str | os.PathLike[str]) -> TrainConfig:
    """The settings that a run was started with, as it has stored them: the rate that its range test found as `lr`,
    `max_steps` for `max_minutes`, a path as `init`."""
    if config.optimizer.lr == "auto" and run.lr_find.exists():
        config = config.with_settings(lr=run.read_config().optimizer.lr)
    if config.max_minutes is not None:
        config = config.with_settings(max_minutes=None, max_steps=run.read_config().max_steps)
    if config.init is not None and config.init != run.read_config().init:
        config = config.with_settings(init=find_initial_weights(config.init, runs_dir))
    return config


def _generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
