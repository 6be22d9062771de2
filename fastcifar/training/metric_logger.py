"""The metrics of a run: summed on the device, logged, shown while it runs; results.csv, metrics.json and curves.png."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from fastcifar import plotting
from fastcifar.inference.calibration import Calibration, not_held_out
from fastcifar.inference.metrics import compute_metrics
from fastcifar.inference.predictions import Predictions
from fastcifar.models import count_parameters
from fastcifar.models.layers import frozen_part
from fastcifar.training.lr_finder import warn_if_not_learning
from fastcifar.training.progress import Progress, RunContext, TimeLeft
from fastcifar.training.split import warn_of_small_validation
from fastcifar.training.step import TrainStep

log = logging.getLogger(__name__)
READ_LOSS_EVERY = 20  # steps on a GPU, where reading a number waits for the device
ESTIMATE_AFTER = 20  # steps


class MetricLogger:
    """Sums loss and accuracy of the current epoch into `progress`, and writes what a run reports."""

    def __init__(self, context: RunContext, step: TrainStep, progress: Progress) -> None:
        self.context, self.config, self.step, self.progress = context, context.config, step, progress
        loaders = context.loaders
        self.time_left = TimeLeft(context.config, context.num_steps, len(loaders.train), loaders.info.image_shape)
        self._num_steps_here = 0  # since this process began or resumed the run
        self._warned = context.is_fold
        dtype = torch.float32 if context.device.type == "mps" else torch.float64
        self._sums = torch.zeros(2, dtype=dtype, device=context.device)  # loss, correctly classified
        self._begin = 0.0
        part = frozen_part(step.network)
        self._num_trained = count_parameters(step.network)
        self._num_parameters = self._num_trained + (0 if part is None else part.num_parameters)
        self._known_at = 0.0, 0  # time and step of the last loss that was read

    def log_start(self) -> None:
        """Log what is trained, on what; open the logs of the dashboards."""
        progress = self.progress
        self.context.loggers.begin(
            self.context.run.path,
            self.config.to_settings(),
            step=progress.step,
            history=progress.history,
            is_resumed=self.context.is_resumed,
        )
        loaders, world_size, amp = self.context.loaders, self.context.distributed.world_size, self.step.amp
        log.info("loader: %s", loaders.choice)
        log.info(
            "%s, %s parameters, on %s%s%s  %s training images, %s validation images",
            self.config.model.name,
            f"{self._num_parameters:,}",
            self.context.device,
            f" with {amp} autocast" if amp != "off" else "",
            f", {world_size} processes" if world_size > 1 else "",
            f"{loaders.num_train:,}",
            f"{loaders.num_val:,}",
        )
        warn_of_small_validation(loaders.num_val, loaders.classes_without_val, self.config.data.val_size)
        if self.config.data.sampler == self.config.optimizer.class_weights == "balanced":
            log.warning("sampler and class_weights are both balanced, so small classes count twice; one is enough")

    def begin_epoch(self) -> None:
        """Start, or resume, the sums and the clock of the current epoch."""
        progress, context = self.progress, self.context
        context.reporter.begin(f"epoch {progress.epoch + 1}/{self.config.epochs}", context.loaders.train.num_images)
        context.reporter.advance(progress.batch * self.config.batch_size)
        self._known_at = time.monotonic(), progress.step
        self._begin = self._known_at[0] - progress.seconds
        sums = torch.tensor([progress.loss_sum, progress.correct], dtype=self._sums.dtype)
        self._sums = (sums * context.distributed.is_main).to(context.device)
        self.time_left.start()

    def after_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> float | None:
        """Add the step that `progress` has just counted; return its loss, or None where reading it would wait.

        loss: () float32; logits: (N, classes) float32; labels: (N,) int64, of which the accuracy is counted.
        """
        progress, reporter = self.progress, self.context.reporter
        self.time_left.step(progress.step - 1)
        self._sums += torch.stack((loss * len(labels), (logits.argmax(1) == labels).sum())).to(self._sums)
        known = None
        if self.context.device.type == "cpu" or progress.step % READ_LOSS_EVERY == 0:
            known = float(loss)
            reporter.step(progress.step, known, self.time_left.seconds(progress))
            if self.context.loggers.is_active:
                self._log_step(known)
        reporter.advance(self.config.batch_size)
        self._num_steps_here += 1
        if self._num_steps_here == ESTIMATE_AFTER:
            self.time_left.log(progress)
        if self.config.runtime.log_every and progress.batch % self.config.runtime.log_every == 0:
            self._log_loss()
        return known

    def _log_step(self, loss: float) -> None:
        (before, first), now, step = self._known_at, time.monotonic(), self.progress.step
        self._known_at = now, step
        images_per_s = (step - first) * self.config.batch_size / max(now - before, 1e-9)
        lr = float(self.step.optimizer.param_groups[0]["lr"])
        self.context.loggers.step(step, loss=loss, lr=lr, images_per_s=images_per_s)

    def reduce(self) -> None:
        """Write the sums over all processes, and the time, into `progress`."""
        loss_sum, correct = self.context.distributed.all_reduce_sum(self._sums.tolist())
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
            tested = (self.context.run.lr_find / "lr_find.csv").is_file()  # the rate is that of a range test
            num_classes = len(self.context.loaders.info.class_names)
            self._warned = warn_if_not_learning(self.config, row, num_classes, tested=tested)
        return row

    def log_test(self, predictions: Predictions, calibration: Calibration | None) -> dict[str, Any]:
        """Log the test of the best weights; return its scores, plain and calibrated, by their names in metrics.json."""
        metrics = compute_metrics(predictions)
        log.info(
            "test accuracy %.2f%%, loss %.4f, on %d images", metrics.accuracy * 100, metrics.loss, len(predictions)
        )
        scores = {f"test_{name}": value for name, value in metrics.scores().items()}
        scores["num_test_images"] = len(predictions)
        if calibration is None:
            loaders = self.context.loaders
            reason = not_held_out(loaders.num_train, len(loaders.info.class_names))
            log.info("not calibrated: %s", reason)
            return {**scores, "not_calibrated": reason}
        calibrated = compute_metrics(predictions.with_temperature(calibration.temperature))
        log.info(
            "calibrated on %d validation images: temperature %.3f", calibration.num_images, calibration.temperature
        )
        log.info(
            "calibrated test loss %.4f, calibration error %.2f%% (%.2f%% before)",
            *(calibrated.loss, calibrated.ece * 100, metrics.ece * 100),
        )
        scores["temperature"] = calibration.temperature
        return {**scores, "test_calibrated_loss": calibrated.loss, "test_calibrated_ece": calibrated.ece}

    def write_results(self) -> None:
        """Write results.csv, on rank 0."""
        if self.context.distributed.is_main:
            self.context.run.write_results(self.progress.history)

    def write_metrics(self, scores: dict[str, Any]) -> dict[str, Any]:
        """Write metrics.json, on rank 0: `scores` of the test images and facts about the run; return its content."""
        context, config, progress, loaders = self.context, self.config, self.progress, self.context.loaders
        validated, test_images = loaders.val is not None, loaders.test.beton
        metrics = {
            **scores,
            "weights": "of the best validation accuracy" if validated else "of the last epoch",
            "best": progress.best,
            "epochs": progress.epoch,
            "steps": progress.step,
            "num_train_images": loaders.num_train,
            "num_val_images": loaders.num_val,
            "train_seconds": round(sum(row["seconds"] for row in progress.history), 3),
            "recipe": config.recipe,
            "model": config.model.name,
            "num_parameters": self._num_parameters,
            "num_trained_parameters": self._num_trained,
            "loader": loaders.train.name,
            "device": str(context.device),
            "processes": context.distributed.world_size,
            "amp": self.step.amp,
            "lr": config.optimizer.lr,
            "data_sha256": loaders.info.sha256,
            "test_data_sha256": test_images.sha256,
            "data_source": test_images.manifest.source if test_images.manifest else None,
            "seed": config.seed,
        }
        if config.schedule.name == "plateau":
            metrics["plateau_monitor"] = f"{'validation' if validated else 'training'} {config.schedule.monitor}"
        if context.distributed.is_main:
            context.run.write_metrics(metrics)
        return metrics

    def draw_curves(self) -> None:
        """Write curves.png, on rank 0; a warning where it cannot be drawn."""
        run, distributed = self.context.run, self.context.distributed
        if not distributed.is_main:
            return

        command = run.resume_command(self.config.model, distributed)
        with plotting.figure_writer(run.path, f"draw it with: {command}") as write:
            best = None if self.progress.best is None else self.progress.best["epoch"]
            write(run.curves.name, lambda: plotting.curves(self.progress.history, best=best))

    def _log_loss(self) -> None:
        """Log the mean loss of the batches since the last such line."""
        progress = self.progress
        (total,) = self.context.distributed.all_reduce_sum([float(self._sums[0])])
        num_images = (progress.batch - progress.logged_batch) * self.config.batch_size
        loss = (total - progress.logged_sum) / num_images
        log.info("epoch %d, batch %d: loss %.4f", progress.epoch + 1, progress.batch, loss)
        progress.logged_batch, progress.logged_sum = progress.batch, total
