"""The training loop: steps, validation, saving and stopping."""

from __future__ import annotations

import logging
import math
import os
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcifar.config import AUTO_SUGGESTIONS, TrainConfig
from fastcifar.errors import DivergedError, Stopped
from fastcifar.inference.predict import predict
from fastcifar.inference.predictions import Predictions
from fastcifar.io.checks import require_utf8
from fastcifar.io.locks import lock_folder
from fastcifar.loaders import Loader
from fastcifar.models import builder, count_parameters
from fastcifar.training import checkpoint
from fastcifar.training.advice import tell_default_rate, warn_of_guessing
from fastcifar.training.cpu_threads import CpuThreads
from fastcifar.training.data import Loaders
from fastcifar.training.device import (
    choose_device,
    choose_threads,
    keep_freed_memory,
    make_deterministic,
    standard_torch_defaults,
)
from fastcifar.training.distributed import Processes, join
from fastcifar.training.find_lr import write_curve
from fastcifar.training.finish import finish, resume_command
from fastcifar.training.learner import Learner
from fastcifar.training.progress import Reporter, SilentReporter
from fastcifar.training.run_folder import RunFolder, create_run, log_file
from fastcifar.training.signals import StopRequest
from fastcifar.training.split import warn_of_few
from fastcifar.training.step import resized
from fastcifar.training.time_left import TimeLeft

log = logging.getLogger(__name__)
SAVE_EVERY_S = 300.0
ESTIMATE_AFTER = 20
LONG_S = 3600.0
FAST_RECIPE = "fast"
CHECK_LOSS_EVERY = 20  # on a GPU, where looking at a number waits for the device


@standard_torch_defaults()
def train(
    config: TrainConfig,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    name: str | None = None,
    resume: RunFolder | None = None,
    reporter: Reporter | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Train as `config` says; return the run folder and what its metrics.json holds.

    Makes a new folder `name` in `runs_dir` (named after the recipe or the network if not given), or goes on in that of
    `resume`. Under `torchrun` the processes share each batch, and the first alone writes.
    Raises DataError (4), DivergedError (5), CheckpointError (6), UsageError (2), and Stopped (130, 143) after a
    signal, when everything is saved.
    """
    processes = join()
    with ExitStack() as stack:
        request = stack.enter_context(StopRequest())  # left last: what has failed is told, also if a signal follows
        stack.enter_context(processes.noticing_losses())
        trainer = stack.enter_context(closing(Trainer(config, reporter or SilentReporter(), processes, request)))
        run = resume
        if run is None and processes.first:
            run = create_run(runs_dir, (config.recipe or config.model.label) if name is None else name)
        run = processes.of_first(run)
        assert run is not None
        if processes.first:
            stack.enter_context(lock_folder(run.path, "another process is training this run; wait for it to end"))
            stack.enter_context(log_file(run.log))
        trainer.use(run)
        if resume is not None:
            trainer.learner.restore(run)
        if processes.first:
            run.write_config(trainer.learner.config)
        request.begin()
        if resume is None:
            trainer.learner.save(run)  # stopped at any moment from here on, it goes on
        trainer.fit()
        return run, finish(run, trainer.learner, trainer.loaders, trainer.evaluate)


class Trainer:
    """One run: its data, what is trained on them, and the steps until all are done or it is stopped."""

    run: RunFolder

    def __init__(self, config: TrainConfig, reporter: Reporter, processes: Processes, request: StopRequest) -> None:
        require_utf8("data_dir", str(Path(config.data.data_dir).absolute()))  # so it is stored
        self.config, self.reporter, self.processes, self.request = config, reporter, processes, request
        self.device = choose_device(config.runtime.device, processes.local_rank if processes.count > 1 else None)
        choose_threads(config.runtime.threads)
        if config.runtime.deterministic:
            make_deterministic(self.device)
        if self.device.type == "cpu" and not keep_freed_memory():
            log.info("the C library is not glibc: freed memory is given back at each step")
        builder(config.model)  # a name that is wrong is told before the data is read
        self.loaders = Loaders(config, self.device, processes)
        try:
            self.learner = Learner(config, self.loaders, self.device, processes, reporter)
        except BaseException:
            self.loaders.close()
            raise
        self._saved_at = time.monotonic()
        shape = self.learner.data.image_shape
        self._time_left = TimeLeft(self.learner.config, self.learner.num_steps, shape)
        alone = processes.count == 1 and self.device.type == "cpu" and not self.loaders.train.num_workers
        may_change = (
            config.runtime.threads is None and not config.runtime.deterministic
        )  # the last bits depend on the number
        self._threads = CpuThreads() if alone and may_change else None
        self._steps_here = 0
        """Steps since this process began or resumed the run."""
        self._told_guessing = False
        self._cut_short = False
        """--max-steps ended an epoch before its end: what was saved then is what more steps go on from."""

    def use(self, run: RunFolder) -> None:
        """Write into this folder."""
        self.run = run
        run.own(run.last.parent)
        curve = self.learner.lr_curve
        if curve is not None and self.processes.first:
            write_curve(curve, run.own(run.lr_find), AUTO_SUGGESTIONS[self.config.optimizer.name])
            log.info("learning rate %.4g, from the range test (%s)", self.learner.config.optimizer.lr, run.lr_find)
        if self.config.optimizer.lr is None:
            tell_default_rate(self.config)

    def close(self) -> None:
        """Give back the loaders' threads and processes."""
        self.loaders.close()
        self.processes.end()
        if self._threads is not None:
            self._threads.close()

    def fit(self) -> None:
        """Train what is left."""
        learner = self.learner
        log.info("loader: %s", self.loaders.choice)
        log.info(
            "%s, %s parameters, on %s%s%s; %d images to train on, %d to validate",
            self.config.model.name,
            f"{count_parameters(learner.network):,}",
            self.device,
            f" with {learner.amp} autocast" if learner.amp != "off" else "",
            f", {self.processes.count} processes" if self.processes.count > 1 else "",
            self.loaders.num_train,
            self.loaders.num_val,
        )
        warn_of_few(self.loaders.num_val, self.loaders.not_validated, self.config.data.val_size)
        # an epoch whose steps are done may still have to be validated, after a stop
        while learner.progress.step < learner.num_steps or learner.progress.batch:
            self._epoch()
        if learner.progress.best is None:  # its weights were lost, and no epoch came after that
            self._keep(learner.progress.history[-1])
            self._save()

    def _save(self) -> None:
        if not self._cut_short:
            self.learner.save(self.run)
        self._saved_at = time.monotonic()

    def _epoch(self) -> None:
        learner, loader, config = self.learner, self.loaders.train, self.config
        progress = learner.progress
        self.reporter.begin(f"epoch {progress.epoch + 1}/{config.epochs}", loader.num_images)
        self.reporter.advance(progress.batch * config.batch_size)
        learner.network.train()
        began = time.monotonic() - progress.seconds
        own = torch.tensor([progress.loss_sum, progress.correct], dtype=torch.float64) * self.processes.first
        own = own.to(self.device) if self.device.type != "mps" else own.float().to(self.device)

        def keep_sums() -> None:
            loss_sum, correct = self.processes.total(own.tolist())
            progress.loss_sum, progress.correct = loss_sum, round(correct)
            progress.seconds = time.monotonic() - began

        self._time_left.start()
        done = progress.step >= learner.num_steps  # stopped after its last step: only the validation is left
        batches = loader.epoch(progress.epoch, progress.batch)
        for batch in () if done else batches:
            side = self._side(progress.step)
            images = batch.images if side is None else resized(batch.images, side)
            loss, logits = learner.step(images, batch.labels)
            self._time_left.step(progress.step)
            if self._threads is not None:
                self._threads.after_step()
            self._steps_here += 1
            progress.step += 1
            progress.batch += 1
            progress.seen += config.batch_size
            own += torch.stack((loss * len(batch.labels), (logits.argmax(1) == batch.labels).sum())).to(own)
            told = None
            if self.device.type == "cpu" or progress.step % CHECK_LOSS_EVERY == 0:
                told = float(loss)
                self.reporter.step(progress.step, told, self._time_left.seconds(progress))
            learner.schedule.after_step()
            self.reporter.advance(config.batch_size)
            if self._steps_here == ESTIMATE_AFTER:
                self._time_left.log(progress)
                slow = progress.epoch == 0 and self._time_left.seconds(progress) > LONG_S
                if slow and config.recipe != FAST_RECIPE:
                    log.info("a faster recipe: fastcifar train --recipe %s", FAST_RECIPE)
            if config.runtime.log_every and progress.batch % config.runtime.log_every == 0:
                self._log_loss(float(own[0]))
            last = progress.step >= learner.num_steps
            signum, save = self._agree(told)
            if save and not last:
                keep_sums()
                self._save()
                self._answer(signum)
            if last:
                break
        batches.close()
        loader.beton.check_unchanged()  # also after the last step, which does not ask for a batch more
        keep_sums()
        self._require_finite(progress.loss_sum / progress.seen)
        self._end_epoch()

    def _log_loss(self, own: float) -> None:
        """Say the mean loss of the batches since the last time; `own` is this process's sum in this epoch."""
        progress = self.learner.progress
        (total,) = self.processes.total([own])
        count = (progress.batch - progress.logged_batch) * self.config.batch_size
        loss = (total - progress.logged_sum) / count
        log.info("epoch %d, batch %d: loss %.4f", progress.epoch + 1, progress.batch, loss)
        progress.logged_batch, progress.logged_sum = progress.batch, total

    def _side(self, step: int) -> int | None:
        """The side that images are resized to in this step; None: they are not."""
        for side, until in self.config.progressive:
            if step < until * self.learner.num_steps:
                return side
        return None

    def _agree(self, loss: float | None) -> tuple[int, bool]:
        """The signal that one was asked to stop by, or 0, and whether all save now. Raises if a loss is not finite."""
        overdue = time.monotonic() - self._saved_at > SAVE_EVERY_S
        diverged = loss is not None and not math.isfinite(loss)
        signum, save, stop = self.processes.largest(self.request.signum, overdue, diverged)
        if stop:
            self._require_finite(math.nan if loss is None else loss)
            self._require_finite(math.nan)
        return signum, bool(signum or save)

    def _require_finite(self, loss: float, what: str = "loss") -> None:
        if not math.isfinite(loss):
            step, lr = self.learner.progress.step, self.learner.lr
            raise DivergedError(f"the {what} is {loss} at step {step}, learning rate {lr:g}; try a smaller --lr")

    def _answer(self, signum: int) -> None:
        """End the run if a signal asked for it; all is saved."""
        if signum:
            go_on = resume_command(self.run, self.config, self.processes)
            raise Stopped(signum, f"saved at step {self.learner.progress.step}; go on with: {go_on}")

    def _end_epoch(self) -> None:
        learner = self.learner
        progress, seconds = learner.progress, learner.progress.seconds
        whole = progress.batch == len(self.loaders.train)
        if not whole or self.processes.count > 1:  # torchrun does not wait long for an evaluation to end
            self._save()
        row: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "lr": learner.lr,
            "train_loss": progress.loss_sum / progress.seen,
            "train_accuracy": progress.correct / progress.seen,
            "val_loss": None,
            "val_accuracy": None,
            "seconds": round(seconds, 3),
            "images_per_s": round(progress.seen / seconds, 1),
        }
        text = f"epoch {row['epoch']}/{self.config.epochs}"
        text += f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}"
        if self.loaders.val is not None:
            began = time.monotonic()
            predictions = self.evaluate(learner.step.scored, self.loaders.val, "validation")
            self._time_left.validation_s = time.monotonic() - began
            row["val_loss"], row["val_accuracy"] = predictions.loss, predictions.accuracy
            text += f"  validation loss {predictions.loss:.4f} accuracy {predictions.accuracy:.2%}"
        log.info("%s  lr %.4g  %.0f images/s", text, row["lr"], row["images_per_s"])
        if whole and progress.step >= ESTIMATE_AFTER and not self._told_guessing:  # in fewer steps none has learned
            self._told_guessing = warn_of_guessing(
                learner.config, row, len(learner.data.class_names), was_found=self.config.optimizer.lr == "auto"
            )
        learner.schedule.after_epoch(row)
        if self._is_best(row, whole):
            self._keep(row)
        progress.begin_next_epoch(row)
        self._time_left.log(progress)
        self._cut_short = not whole
        self._save()
        if self.processes.first:
            self.run.write_results(progress.history)

    def _keep(self, row: dict[str, Any]) -> None:
        """The weights after this epoch are the best so far."""
        learner = self.learner
        learner.progress.best = {key: row[key] for key in ("epoch", "val_loss", "val_accuracy")}
        if self.processes.first:
            facts = {"epoch": row["epoch"]}
            checkpoint.save_weights(self.run.best, learner.step.scored, self.config.model, learner.data, **facts)

    def _is_best(self, row: dict[str, Any], whole: bool) -> bool:
        """Of whole epochs the one that validates best; a part of one counts if none has ended. Without validation the
        last."""
        best = self.learner.progress.best
        if best is None or row["val_accuracy"] is None:
            return True
        return whole and bool(row["val_accuracy"] > best["val_accuracy"])

    def evaluate(self, model: nn.Module, loader: Loader, what: str, tta: str = "none") -> Predictions:
        """The predictions on the images of all processes; a signal may end this. Raises DivergedError."""

        def advance(count: int) -> None:
            self.reporter.advance(count * self.processes.count)
            if self.processes.count == 1 and self.request.signum:
                self._save()
                self._answer(self.request.signum)

        self.processes.share_buffers(model)
        self.reporter.begin(what, loader.num_images * self.processes.count)
        predictions = predict(model, loader, amp=self.learner.amp, tta=tta, advance=advance, distributed=self.processes)
        (signum,) = self.processes.largest(self.request.signum)
        if signum:
            self._save()
            self._answer(signum)
        self._require_finite(predictions.loss, f"{what} loss")
        return predictions
