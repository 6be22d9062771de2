"""The metrics of a run: summed on the device, logged, shown while it runs; results.csv, metrics.json and curves.png."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from torch import nn

from fastcifar import plotting
from fastcifar.config import TrainConfig
from fastcifar.inference.predictions import Predictions
from fastcifar.models import count_parameters
from fastcifar.training.advice import warn_if_not_learning
from fastcifar.training.data import Loaders
from fastcifar.training.distributed import Distributed
from fastcifar.training.progress import Progress, Reporter
from fastcifar.training.run_folder import RunFolder
from fastcifar.training.split import warn_of_small_validation
from fastcifar.training.time_left import TimeLeft

log = logging.getLogger(__name__)
READ_LOSS_EVERY = 20  # steps on a GPU, where reading a number waits for the device
ESTIMATE_AFTER = 20  # steps
LONG_RUN_S = 3600.0
FAST_RECIPE = "fast"


class MetricLogger:
    """Sums loss and accuracy of the current epoch into `progress`, and writes what a run reports."""

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        loaders: Loaders,
        progress: Progress,
        num_steps: int,
        device: torch.device,
        distributed: Distributed,
        reporter: Reporter,
    ) -> None:
        self.run, self.config, self.loaders, self.progress = run, config, loaders, progress
        self.device, self.distributed, self.reporter = device, distributed, reporter
        self.time_left = TimeLeft(config, num_steps, loaders.info.image_shape)
        self._num_steps_here = 0  # since this process began or resumed the run
        self._warned = False

    def log_start(self, network: nn.Module, amp: str) -> None:
        """Log what is trained, on what."""
        loaders, world_size = self.loaders, self.distributed.world_size
        log.info("loader: %s", loaders.choice)
        log.info(
            "%s, %s parameters, on %s%s%s; %d images to train on, %d to validate",
            self.config.model.name,
            f"{count_parameters(network):,}",
            self.device,
            f" with {amp} autocast" if amp != "off" else "",
            f", {world_size} processes" if world_size > 1 else "",
            loaders.num_train,
            loaders.num_val,
        )
        warn_of_small_validation(loaders.num_val, loaders.classes_without_val, self.config.data.val_size)

    def begin_epoch(self) -> None:
        """Start, or resume, the sums and the clock of the current epoch."""
        progress = self.progress
        self.reporter.begin(f"epoch {progress.epoch + 1}/{self.config.epochs}", self.loaders.train.num_images)
        self.reporter.advance(progress.batch * self.config.batch_size)
        self._begin = time.monotonic() - progress.seconds
        sums = torch.tensor([progress.loss_sum, progress.correct], dtype=torch.float64) * self.distributed.is_main
        self._sums = (sums.float() if self.device.type == "mps" else sums).to(self.device)
        self.time_left.start()

    def after_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> float | None:
        """Add the step that `progress` has just counted; return its loss, or None where reading it would wait.

        loss: () float32; logits: (N, classes) float32; labels: (N,) int64.
        """
        progress = self.progress
        self.time_left.step(progress.step - 1)
        self._sums += torch.stack((loss * len(labels), (logits.argmax(1) == labels).sum())).to(self._sums)
        known = None
        if self.device.type == "cpu" or progress.step % READ_LOSS_EVERY == 0:
            known = float(loss)
            self.reporter.step(progress.step, known, self.time_left.seconds(progress))
        self.reporter.advance(self.config.batch_size)
        self._num_steps_here += 1
        if self._num_steps_here == ESTIMATE_AFTER:
            self.log_time_left()
            is_long = progress.epoch == 0 and self.time_left.seconds(progress) > LONG_RUN_S
            if is_long and self.config.recipe != FAST_RECIPE:
                log.info("a faster recipe: fastcifar train --recipe %s", FAST_RECIPE)
        if self.config.runtime.log_every and progress.batch % self.config.runtime.log_every == 0:
            self._log_loss()
        return known

    def reduce(self) -> None:
        """Write the sums over all processes, and the time, into `progress`."""
        loss_sum, correct = self.distributed.all_reduce_sum(self._sums.tolist())
        self.progress.loss_sum, self.progress.correct = loss_sum, round(correct)
        self.progress.seconds = time.monotonic() - self._begin

    def log_epoch(self, lr: float, validation: Predictions | None, complete: bool) -> dict[str, Any]:
        """Log the current epoch, whose sums have been reduced; return its row of results.csv."""
        progress = self.progress
        row: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "lr": lr,
            "train_loss": progress.loss_sum / progress.seen,
            "train_accuracy": progress.correct / progress.seen,
            "val_loss": None if validation is None else validation.loss,
            "val_accuracy": None if validation is None else validation.accuracy,
            "seconds": round(progress.seconds, 3),
            "images_per_s": round(progress.seen / progress.seconds, 1),
        }
        text = f"epoch {row['epoch']}/{self.config.epochs}"
        text += f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}"
        if validation is not None:
            text += f"  validation loss {validation.loss:.4f} accuracy {validation.accuracy:.2%}"
        log.info("%s  lr %.4g  %.0f images/s", text, row["lr"], row["images_per_s"])
        if complete and progress.step >= ESTIMATE_AFTER and not self._warned:  # no network learns in fewer steps
            tested = (self.run.lr_find / "lr_find.csv").is_file()  # the rate is that of a range test
            self._warned = warn_if_not_learning(self.config, row, len(self.loaders.info.class_names), tested=tested)
        return row

    def log_time_left(self) -> None:
        """Log how long the rest of the run takes."""
        self.time_left.log(self.progress)

    def write_results(self) -> None:
        """Write results.csv, on rank 0."""
        if self.distributed.is_main:
            self.run.write_results(self.progress.history)

    def write_metrics(self, scores: dict[str, Any], network: nn.Module, amp: str) -> dict[str, Any]:
        """Write metrics.json, on rank 0: `scores` of the test images and facts about the run; return its content."""
        config, progress, loaders = self.config, self.progress, self.loaders
        validated = loaders.val is not None
        metrics = {
            **scores,
            "weights": "of the best validation accuracy" if validated else "of the last epoch",
            "best": progress.best,
            "epochs": progress.epoch,
            "steps": progress.step,
            "plateau_watches": f"{'validation' if validated else 'training'} {config.schedule.monitor}",
            "val_size": loaders.num_val,
            "train_seconds": round(sum(row["seconds"] for row in progress.history), 3),
            "recipe": config.recipe,
            "model": config.model.name,
            "num_parameters": count_parameters(network),
            "loader": loaders.train.name,
            "device": str(self.device),
            "processes": self.distributed.world_size,
            "amp": amp,
            "lr": config.optimizer.lr,
            "data_sha256": loaders.info.sha256,
            "test_data_sha256": loaders.test.beton.sha256,
            "seed": config.seed,
        }
        if self.distributed.is_main:
            self.run.write_metrics(metrics)
        return metrics

    def draw_curves(self) -> None:
        """Write curves.png, on rank 0; a warning where it cannot be drawn."""
        if not self.distributed.is_main:
            return

        command = self.run.resume_command(self.config.model, self.distributed)
        with plotting.figure_writer(self.run.path, f"draw it with: {command}") as write:
            write(self.run.curves.name, lambda: plotting.curves(self.progress.history))

    def _log_loss(self) -> None:
        """Log the mean loss of the batches since the last such line."""
        progress = self.progress
        (total,) = self.distributed.all_reduce_sum([float(self._sums[0])])
        num_images = (progress.batch - progress.logged_batch) * self.config.batch_size
        loss = (total - progress.logged_sum) / num_images
        log.info("epoch %d, batch %d: loss %.4f", progress.epoch + 1, progress.batch, loss)
        progress.logged_batch, progress.logged_sum = progress.batch, total
