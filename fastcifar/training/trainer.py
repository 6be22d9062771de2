"""`Trainer`, the loop of a run: fit → train_epoch → train_step, then the test."""

from __future__ import annotations

import logging
import math
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fastcifar.errors import DivergedError, Stopped
from fastcifar.inference.calibration import calibrate
from fastcifar.inference.predict import concatenate, predict
from fastcifar.inference.predictions import Predictions
from fastcifar.loaders import Batch, Loader
from fastcifar.models.layers import train_mode
from fastcifar.training.checkpointer import Checkpointer
from fastcifar.training.device import CpuThreads
from fastcifar.training.metric_logger import MetricLogger
from fastcifar.training.progress import Progress, RunContext
from fastcifar.training.schedule import Schedule
from fastcifar.training.step import make_train_step, resize
from fastcifar.training.stop import StopRequest

log = logging.getLogger(__name__)


class Trainer:
    """Trains `network` for the steps that are left of a run, then tests the best weights."""

    def __init__(self, context: RunContext, network: nn.Module, stop: StopRequest) -> None:
        config, device, distributed, loader = context.config, context.device, context.distributed, context.loaders.train
        self.context, self.config, self.distributed, self.stop = context, config, distributed, stop
        self.step = make_train_step(network, config, loader, device, distributed)
        self.schedule = Schedule(self.step.optimizer, config, context.num_steps, len(loader))
        self.progress = Progress()
        self.checkpointer = Checkpointer(context, self.step, self.schedule, self.progress)
        self.logger = MetricLogger(context, self.step, self.progress)
        single = distributed.world_size == 1 and device.type == "cpu" and not loader.num_workers
        # with --deterministic they stay: the last bits depend on their number
        self.threads = CpuThreads(single and config.runtime.threads is None and not config.runtime.deterministic)
        if not distributed.is_main:
            torch.manual_seed((config.seed + distributed.rank) % 2**63)  # dropout; loaders have streams of their own

    def fit(self) -> None:
        """Train the epochs that are left."""
        self.logger.log_start()
        if self._has_steps_left and self.distributed.is_main:
            self.context.run.remove_metrics()
        # a run that was stopped in a validation repeats it
        while self._has_steps_left or self.progress.batch:
            self.train_epoch()
            self.end_epoch()
        if self._is_stopped_early:
            log.info("no better validation accuracy for %d epochs: training ends here", self.config.early_stop)
        if self.progress.best is None:  # the best weights were lost, and no epoch followed
            self.checkpointer.save_best(self.progress.history[-1])
            self.checkpointer.save()
        self.logger.write_results()

    def train_epoch(self) -> None:
        """Train the batches that are left of the current epoch."""
        progress, loader = self.progress, self.context.loaders.train
        train_mode(self.step.network)
        self.logger.begin_epoch()
        with closing(loader.epoch(progress.epoch, progress.batch)) as batches:
            while progress.step < self.context.num_steps and (batch := next(batches, None)) is not None:
                loss = self.train_step(batch)
                self._save_or_stop(loss)
        loader.beton.check_unchanged()  # also after the last step, which requests no further batch
        self.logger.reduce()
        self._require_finite(progress.loss_sum / progress.seen, "loss")

    def train_step(self, batch: Batch) -> float | None:
        """Update the weights; return the loss where it is known without waiting for the GPU."""
        progress = self.progress
        loss, logits = self.step(self._resized(batch.images), batch.labels, batch.mix)
        self.threads.after_step()
        progress.step += 1
        progress.batch += 1
        progress.seen += self.config.batch_size
        known_loss = self.logger.after_step(loss, logits, batch.main_labels)
        self.schedule.after_step()
        return known_loss

    def end_epoch(self) -> None:
        """Validate, adjust the rate, keep the best weights, save."""
        progress = self.progress
        complete = progress.batch == len(self.context.loaders.train)
        if not complete or self.distributed.world_size > 1:  # torchrun grants little time after a signal
            self.checkpointer.save()
        row = self.logger.log_epoch(self.step.lr, self._validate(), complete)
        self.schedule.after_epoch(row)
        if self._is_best(row, complete):
            self.checkpointer.save_best(row)
        progress.begin_next_epoch(row)
        self.logger.time_left.log(progress)
        if not complete:
            self.checkpointer.freeze()
        self.checkpointer.save()
        self.logger.write_results()
        self.context.loggers.epoch(row)

    def evaluate(
        self, model: nn.Module, loader: Loader, name: str, tta: str = "none", plain: Predictions | None = None
    ) -> Predictions:
        """The predictions of `model` on the images of all processes. Raises DivergedError, Stopped.

        plain: those without `tta`, which then are not computed again; a process of several knows its own share alone.
        """
        world_size, reporter = self.distributed.world_size, self.context.reporter
        self.distributed.broadcast_buffers(model)
        reporter.begin(name, loader.num_images * world_size)
        batches = []
        known = None if plain is None or world_size > 1 else torch.from_numpy(plain.logits)
        for batch in predict(model, loader, amp=self.step.amp, tta=tta, plain=known):
            batches.append(batch)
            reporter.advance(len(batch[0]) * world_size)
            if world_size == 1 and self.stop.signum:
                self._save_and_stop(self.stop.signum)
        predictions = concatenate(batches, self.distributed)
        (signum,) = self.distributed.all_reduce_max(self.stop.signum)
        if signum:
            self._save_and_stop(signum)
        self._require_finite(predictions.loss, f"{name} loss")
        return predictions

    def test(self) -> dict[str, Any]:
        """Evaluate the best weights on the test images, and calibrate them on the validation images; write
        predictions.npz, calibration.json, metrics.json and curves.png; return the content of metrics.json."""
        model, weights_sha256 = self.checkpointer.load_best()
        test, val, tta = self.context.loaders.test, self.context.loaders.val, self.config.tta
        predictions = replace(
            self.evaluate(model, test, "test"), weights_sha256=weights_sha256, data_sha256=test.beton.sha256
        )
        calibration = None
        if val is not None:
            calibration = calibrate(replace(self.evaluate(model, val, "validation"), weights_sha256=weights_sha256))
        scores = self.logger.log_test(predictions, calibration)
        if tta != "none":
            augmented = self.evaluate(model, test, f"test, {tta}", tta, predictions)
            log.info("with test-time augmentation (%s): %.2f%%", tta, augmented.accuracy * 100)
            scores |= {"tta": tta, "tta_accuracy": augmented.accuracy, "tta_loss": augmented.loss}
        if self.distributed.is_main:
            predictions.save(self.context.run.predictions)
            if calibration is not None:
                calibration.save(self.context.run)
        return self.finish(scores)

    def finish(self, scores: dict[str, Any]) -> dict[str, Any]:
        """Write metrics.json with `scores`, and curves.png; return the content of metrics.json."""
        metrics = self.logger.write_metrics(scores)
        self.logger.draw_curves()
        self.context.loggers.finish(metrics)
        return metrics

    @property
    def _has_steps_left(self) -> bool:
        return self.progress.step < self.context.num_steps and not self._is_stopped_early

    @property
    def _is_stopped_early(self) -> bool:
        best, patience = self.progress.best, self.config.early_stop
        return patience is not None and best is not None and bool(self.progress.epoch - best["epoch"] >= patience)

    def _resized(self, images: torch.Tensor) -> torch.Tensor:
        """The images in the size of this step: see `progressive`."""
        for side, until in self.config.progressive:
            if self.progress.step < until * self.context.num_steps:
                return resize(images, side)
        return images

    def _save_or_stop(self, loss: float | None) -> None:
        """Save when a checkpoint is due or a signal has come, in all processes after the same step.

        Raises DivergedError if the loss of one of them is not finite; Stopped after a signal.
        """
        own_loss = 0.0 if loss is None else loss
        diverged = not math.isfinite(own_loss)
        flags = self.stop.signum, self.checkpointer.is_due, diverged
        signum, due, any_diverged = self.distributed.all_reduce_max(*flags)
        if any_diverged:
            self._require_finite(own_loss if diverged else math.nan, "loss")
        if (signum or due) and self.progress.step < self.context.num_steps:
            self.logger.reduce()
            self._save_and_stop(signum)

    def _save_and_stop(self, signum: int) -> None:
        """Save, and end the run if `signum` is not 0."""
        self.checkpointer.save()
        if signum:
            run, model = self.context.run, self.config.model
            saved = f"saved at step {self.progress.step}; resume with: "
            config = "config, " * model.names_code
            call = f"fastcifar.train({config}resume={str(run.path)!r})"
            raise Stopped(signum, saved + run.resume_command(model, self.distributed), in_notebook=saved + call)

    def _require_finite(self, loss: float, name: str) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the {name} is {loss} at step {self.progress.step}, learning rate {self.step.lr:g}; try a smaller --lr"
            )

    def _validate(self) -> Predictions | None:
        loader = self.context.loaders.val
        if loader is None:
            return None
        begin = time.monotonic()
        predictions = self.evaluate(self.step.eval_network, loader, "validation")
        self.logger.time_left.validation_s = time.monotonic() - begin
        return predictions

    def _is_best(self, row: dict[str, Any], complete: bool) -> bool:
        """Of complete epochs that of the highest validation accuracy; an incomplete one only if none was completed.
        Without validation the last."""
        best = self.progress.best
        if best is None or row["val_accuracy"] is None:
            return True
        return complete and bool(row["val_accuracy"] > best["val_accuracy"])
