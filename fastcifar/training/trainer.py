"""`train`, which sets up a run, and `Trainer`, its loop: fit → train_epoch → train_step, then the test."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastcifar.config import TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.errors import DivergedError, Stopped
from fastcifar.inference.calibration import calibrate
from fastcifar.inference.predict import concatenate, predict
from fastcifar.inference.predictions import Predictions
from fastcifar.io.checks import require_utf8
from fastcifar.io.locks import lock_folder
from fastcifar.loaders import Batch, Loader
from fastcifar.loggers import Loggers, open_loggers
from fastcifar.models import builder
from fastcifar.models.layers import train_mode
from fastcifar.training.checkpointer import Checkpointer, as_stored
from fastcifar.training.data import Loaders
from fastcifar.training.device import CpuThreads, prepare_device, standard_torch_defaults
from fastcifar.training.distributed import Distributed
from fastcifar.training.initial_weights import log_notes, prepare_network, read_initial_weights
from fastcifar.training.lr_finder import make_initial_network, report_lr, resolve_lr
from fastcifar.training.metric_logger import MetricLogger
from fastcifar.training.pace import resolve_max_minutes
from fastcifar.training.progress import Progress, Reporter, RunContext, SilentReporter
from fastcifar.training.run_folder import RunFolder, create_run, log_file
from fastcifar.training.schedule import Schedule
from fastcifar.training.step import make_train_step, resize
from fastcifar.training.stop import StopRequest

log = logging.getLogger(__name__)


@standard_torch_defaults()
def train(
    config: TrainConfig,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    name: str | None = None,
    resume: RunFolder | None = None,
    reporter: Reporter | None = None,
    betons: Sequence[Beton] | None = None,
    indices: npt.NDArray[np.int64] | None = None,
    test: bool = True,
    loggers: Loggers | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Train with the settings in `config`; return the run folder and the content of its metrics.json.

    Creates the folder `name` in `runs_dir` (default: the name of the recipe or the network), or resumes the run
    `resume`. Under `torchrun` the processes share each batch, and rank 0 writes.
    betons: the training and test images, if they are open already. test: whether to evaluate the test images.
    indices: the training images to train on, (M,) int64, sorted, with `val_size` 0; a run resumes with the same alone.
    loggers: open ones, which the caller closes; by default those of the setting `log` are opened and closed.
    Raises DataError (4), DivergedError (5), CheckpointError (6), UsageError (2), MissingExtraError (3), and Stopped
    (130, 143) after a signal, once all is saved.
    """
    begin, distributed, reporter = time.monotonic(), Distributed.from_environment(), reporter or SilentReporter()
    require_utf8("data_dir", str(Path(config.data.data_dir).absolute()))  # as config.yaml stores it
    with ExitStack() as resources:
        device = prepare_device(config.runtime, distributed)
        builder(config.model)  # an unknown name fails before the data is read
        if resume is not None:
            config = as_stored(config, resume, runs_dir)
        # a resumed run has its weights from the checkpoint
        initial = None if resume or config.init is None else read_initial_weights(config.init, runs_dir)
        config = config if initial is None else config.with_settings(init=initial.path)
        if loggers is None:
            loggers = resources.enter_context(open_loggers(config.runtime.log, is_main=distributed.is_main))
        loaders = resources.enter_context(closing(Loaders(config, device, distributed, betons, indices)))
        resources.enter_context(distributed.connect(device))
        network = make_initial_network(config, loaders.info, device, pretrained=resume is None)
        notes = prepare_network(network, config, loaders.info, initial)
        default_lr = config.optimizer.lr is None
        config, lr_curve = resolve_lr(config, network, loaders, distributed, reporter)
        config, about_length = resolve_max_minutes(config, loaders, device, distributed, reporter, begin)
        run = resume
        if run is None and distributed.is_main:
            run = create_run(runs_dir, (config.recipe or config.model.label) if name is None else name)
        run = distributed.broadcast(run)
        assert run is not None
        if distributed.is_main:
            resources.enter_context(lock_folder(run.path, "another process is training this run; wait for it to end"))
            resources.enter_context(log_file(run.log))
            run.make_subfolder(run.last.parent)
            log_notes([*notes, *about_length])
            report_lr(config, lr_curve, run, is_default=default_lr)
        # resources are closed before the signal handlers are restored: an error is reported even if a signal follows
        with StopRequest() as stop, resources.pop_all():
            context = RunContext(
                config=config,
                run=run,
                loaders=loaders,
                device=device,
                distributed=distributed,
                reporter=reporter,
                loggers=loggers,
                is_resumed=resume is not None,
                is_fold=indices is not None,
            )
            trainer = Trainer(context, network, stop)
            if resume is not None:
                trainer.checkpointer.restore()
            if distributed.is_main:
                run.write_config(config, **({} if initial is None else {"init_sha256": initial.sha256}))
            if resume is None:
                trainer.checkpointer.save()  # from here on, a run that is killed can be resumed
            with closing(trainer.threads):
                trainer.fit()
                return run, trainer.test() if test else trainer.finish({})


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
