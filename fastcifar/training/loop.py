"""The training loop: steps, validation, saving, stopping, and one look at the test set at the end."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.config import TrainConfig
from fastcifar.errors import CheckpointError, DataError, DivergedError, FastcifarError, Stopped, UsageError
from fastcifar.files import write_atomically
from fastcifar.loaders import Loader
from fastcifar.lr_find import LrCurve, RangeTest
from fastcifar.models import builder, count_parameters, make_model
from fastcifar.training import checkpoint
from fastcifar.training.checkpoint import Predictions
from fastcifar.training.data import Loaders
from fastcifar.training.device import (
    choose_amp,
    choose_device,
    keep_freed_memory,
    make_deterministic,
)
from fastcifar.training.evaluate import Answers, evaluate
from fastcifar.training.find_lr import AUTO_SUGGESTION, find_for, write_curve
from fastcifar.training.optimizer import make_optimizer
from fastcifar.training.processes import Processes, join
from fastcifar.training.progress import Progress, Reporter, SilentReporter, duration
from fastcifar.training.run_folder import RunFolder, create_run, log_file
from fastcifar.training.schedule import STRETCHABLE, Schedule
from fastcifar.training.signals import StopRequest
from fastcifar.training.step import Step
from fastcifar.training.sync_norm import synchronised

log = logging.getLogger(__name__)
SAVE_EVERY_S = 300.0
ESTIMATE_AFTER = 20
LONG_S = 3600.0
FAST_RECIPE = "fast"
CHECK_LOSS_EVERY = 20  # on a GPU, where looking at a number waits for the device


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
        stack.enter_context(processes.noticing_losses())
        trainer = stack.enter_context(closing(Trainer(config, reporter or SilentReporter(), processes)))
        run = resume
        if run is None and processes.first:
            run = create_run(runs_dir, (config.recipe or config.network.label) if name is None else name)
        run = processes.of_first(run)
        assert run is not None
        if processes.first:
            stack.enter_context(_only_one(run))
            stack.enter_context(log_file(run.log))
        trainer.use(run)
        if resume is not None:
            trainer.restore()
        if processes.first:
            run.write_config(trainer.config)
        return run, trainer.run_to_the_end()


@contextmanager
def _only_one(run: RunFolder) -> Iterator[None]:
    """No two runs write into one folder."""
    descriptor = os.open(run.path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise FastcifarError(f"{run.path}: another process is training this run; wait for it to end") from None
    try:
        yield
    finally:
        os.close(descriptor)


class Trainer:
    """One run: its data, network, optimiser and progress."""

    run: RunFolder

    def __init__(self, config: TrainConfig, reporter: Reporter, processes: Processes | None = None) -> None:
        self.config, self.reporter = config, reporter
        self.processes = processes = processes or Processes()
        self.request = StopRequest()
        self.device = choose_device(config.device, processes.local_rank if processes.count > 1 else None)
        if config.deterministic:
            make_deterministic(self.device)
        if self.device.type == "cpu" and not keep_freed_memory():
            log.info("the C library is not glibc: freed memory is given back at each step")
        self.amp = choose_amp(self.device, config.amp)
        builder(config.network)  # a name that is wrong is told before the data is read
        self.loaders = Loaders(config, self.device, processes)
        self.data = self.loaders.info
        try:
            self._build()
        except BaseException:
            self.loaders.close()
            raise

    def _build(self) -> None:
        """Network, optimiser and schedule; the learning rate, if it is to be found first."""
        config, processes = self.config, self.processes
        processes.begin(self.device)
        self.num_steps = len(self.loaders.train) * config.epochs
        if config.max_steps is not None:
            self.num_steps = min(self.num_steps, config.max_steps)
        torch.manual_seed(config.seed)
        network: Any = make_model(config.network, len(self.data.class_names), self.data.image_shape)
        self.network: nn.Module = network.to(device=self.device, memory_format=torch.channels_last)
        self.lr_curve: LrCurve | None = None
        if config.lr == "auto":
            curve = processes.of_first(self._find_lr() if processes.first else None)
            assert curve is not None
            self.config = config = replace(config, lr=_found(curve))
            self.lr_curve = curve
        if config.sync_bn and processes.count > 1:  # only now: the range test runs in the first process alone
            self.network = synchronised(self.network, self.device)
        self.optimizer = make_optimizer(self.network, config)
        model = processes.wrap(self.network, self.device)
        called: Any = torch.compile(model) if config.compile else model
        self.step = Step(called, self.network, self.optimizer, config, self.amp)
        self.schedule = Schedule(self.optimizer, self.config, self.num_steps, len(self.loaders.train))
        self.progress = Progress()
        self._saved_at = time.monotonic()
        if not processes.first:
            torch.manual_seed((config.seed + processes.rank) % 2**63)  # of dropout: the images are not drawn from it

    def use(self, run: RunFolder) -> None:
        """Write into this folder."""
        self.run = run
        run.last.parent.mkdir(exist_ok=True)
        if self.lr_curve is not None and self.processes.first:
            write_curve(self.lr_curve, run.lr_find)
            log.info("learning rate %.4g, from the range test (%s)", self.config.lr, run.lr_find)

    def _find_lr(self) -> LrCurve:
        test, batches = RangeTest(), self.loaders.whole_batches()
        self.reporter.begin("range test of the learning rate", test.num_steps)
        try:
            return find_for(self.config, self.network, batches, self.amp, test, self.reporter.advance)
        finally:
            batches.close()

    def close(self) -> None:
        """Give back the loaders' threads and processes."""
        self.loaders.close()
        self.processes.end()

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Everything that is needed to go on from here. Called in all processes, written by the first."""
        generators = self.processes.everyones(_generators(self.device))
        self._saved_at = time.monotonic()
        if not self.processes.first:
            return
        state = {
            "model": self.network.state_dict(),
            "step": self.step.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
            "rng": generators,
            "config": asdict(self.config),
            "data": {"train": self.data.sha256, "classes": list(self.data.class_names)},
            "num_steps": self.num_steps,
            "circumstances": self._circumstances(),
        }
        checkpoint.save_last(self.run, state)

    def _circumstances(self) -> dict[str, Any]:
        return {
            "torch": str(torch.__version__),
            "number of threads": torch.get_num_threads(),
            "number of processes": self.processes.count,
            "device": self.device.type,
        }

    def restore(self) -> None:
        """Go on from weights/last.pt."""
        state = checkpoint.load_last(self.run)
        if state["data"]["train"] != self.data.sha256:
            raise DataError(
                f"{self.run.path}: was trained on a train.beton with SHA-256 {state['data']['train'][:16]}…; that in "
                f"{self.config.data_dir} has {self.data.sha256[:16]}…: convert the same source again or start a new run"
            )
        old, sched = state["config"], self.config.sched
        if sched not in STRETCHABLE and state["num_steps"] != self.num_steps:
            raise UsageError(
                f"the {sched} schedule of {self.run.path} was made for {state['num_steps']} steps and cannot "
                f"stretch to {self.num_steps}; expected the same --epochs ({old['epochs']}) and --max-steps "
                f"({old['max_steps']})"
            )
        now = self._circumstances()
        for what, then in state["circumstances"].items():
            if then != now.get(what):
                log.warning(
                    "resumed with %s %s, begun with %s: the results may differ in the last bits",
                    what,
                    now.get(what),
                    then,
                )
        try:
            self.network.load_state_dict(state["model"])
            self.step.load_state_dict(state["step"])
            self.schedule.load_state_dict(state["schedule"])
            self.progress = Progress(**state["progress"])
            if len(state["rng"]) == self.processes.count:
                _restore_generators(state["rng"][self.processes.rank], self.device)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.run.last}: belongs to another network or other settings than {self.run.config} names"
            ) from error
        log.info("resumed %s after step %d (epoch %d)", self.run.path, self.progress.step, self.progress.epoch + 1)
        self.processes.everyones(None)  # all have read it before the first writes it again

    # ---- the loop ----------------------------------------------------------------------------------------------

    def run_to_the_end(self) -> dict[str, Any]:
        """Train what is left, evaluate, and write everything that the run folder holds."""
        log.info("loader: %s", self.loaders.chosen)
        log.info(
            "%s, %s parameters, on %s%s%s; %d images to train on, %d to validate",
            self.config.network.name,
            f"{count_parameters(self.network):,}",
            self.device,
            f" with {self.amp} autocast" if self.amp != "off" else "",
            f", {self.processes.count} processes" if self.processes.count > 1 else "",
            self.loaders.num_train,
            self.loaders.num_val,
        )
        with self.request:
            # an epoch whose steps are done may still have to be validated, after a stop
            while self.progress.step < self.num_steps or self.progress.batch:
                self._epoch()
            return self._finish()

    def _epoch(self) -> None:
        progress, loader, config = self.progress, self.loaders.train, self.config
        self.reporter.begin(f"epoch {progress.epoch + 1}/{config.epochs}", loader.num_images)
        self.reporter.advance(progress.batch * config.batch_size)
        self.network.train()
        began = time.monotonic() - progress.seconds
        own = torch.tensor([progress.loss_sum, progress.correct], dtype=torch.float64) * self.processes.first
        own = own.to(self.device) if self.device.type != "mps" else own.float().to(self.device)
        logged = own.clone()

        def keep_sums() -> None:
            loss_sum, correct = self.processes.total(own.tolist())
            progress.loss_sum, progress.correct = loss_sum, round(correct)
            progress.seconds = time.monotonic() - began

        done = progress.step >= self.num_steps  # stopped after its last step: only the validation is left
        for batch in () if done else loader.epoch(progress.epoch, progress.batch):
            loss, logits = self.step(self._resized(batch.images), batch.labels)
            progress.step += 1
            progress.batch += 1
            progress.seen += config.batch_size
            own += torch.stack((loss * len(batch.labels), (logits.argmax(1) == batch.labels).sum())).to(own)
            told = None
            if self.device.type == "cpu" or progress.step % CHECK_LOSS_EVERY == 0:
                told = float(loss)
                self.reporter.step(progress.step, told)
            self.schedule.after_step()
            self.reporter.advance(config.batch_size)
            if progress.step == ESTIMATE_AFTER and progress.epoch == 0:
                rest = self._tell_rest(time.monotonic() - began)
                if rest > LONG_S and config.recipe != FAST_RECIPE:
                    log.info("a faster recipe: fastcifar train --recipe %s", FAST_RECIPE)
            if config.log_every and progress.batch % config.log_every == 0:
                loss_of_these = float(own[0] - logged[0]) / (config.log_every * len(batch.labels))
                log.info("epoch %d, batch %d: loss %.4f", progress.epoch + 1, progress.batch, loss_of_these)
                logged.copy_(own)
            last = progress.step >= self.num_steps
            if self._agree(told) and not last:
                keep_sums()
                self.save()
                self._answer()
            if last:
                break
        keep_sums()
        self._require_finite(progress.loss_sum / progress.seen)
        self._end_epoch()

    def _resized(self, images: torch.Tensor) -> torch.Tensor:
        for side, until in self.config.progressive:
            if self.progress.step < until * self.num_steps:
                small = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
                return small.contiguous(memory_format=torch.channels_last)
        return images

    def _agree(self, loss: float | None) -> bool:
        """Whether all save now: one was asked to stop, or it is time. Raises if a loss is not finite."""
        overdue = time.monotonic() - self._saved_at > SAVE_EVERY_S
        diverged = loss is not None and not math.isfinite(loss)
        signum, save, stop = self.processes.largest(self.request.signum or 0, overdue, diverged)
        if stop:
            self._require_finite(math.nan if loss is None else loss)
            self._require_finite(math.nan)
        self.request.signum = signum or None
        return bool(signum or save)

    def _require_finite(self, loss: float, what: str = "loss") -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the {what} is {loss} at step {self.progress.step}, learning rate {self._lr():g}; try a smaller --lr"
            )

    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _answer(self) -> None:
        """End the run if a signal asked for it; all is saved."""
        if self.request.signum is not None:
            raise Stopped(
                self.request.signum,
                f"saved at step {self.progress.step}; go on with: fastcifar train --resume {self.run.path.name}",
            )

    def _tell_rest(self, seconds: float) -> float:
        """Say how long the rest takes if it goes on as in this epoch, of which `seconds` are over; return that."""
        rest = seconds / self.progress.batch * (self.num_steps - self.progress.step)
        if rest > 0:
            log.info("about %s to go", duration(rest))
        return rest

    def _end_epoch(self) -> None:
        progress = self.progress
        seconds = progress.seconds
        row: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "lr": self._lr(),
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
            answers = self._evaluate(self.step.scored, self.loaders.val, "validation")
            self._require_finite(answers.loss, "validation loss")
            row["val_loss"], row["val_accuracy"] = answers.loss, answers.accuracy
            text += f"  validation loss {answers.loss:.4f} accuracy {answers.accuracy:.2%}"
        log.info("%s  lr %.4g  %.0f images/s", text, row["lr"], row["images_per_s"])
        self._tell_rest(seconds)
        self.schedule.after_epoch(row)
        if row["val_accuracy"] is None or progress.best is None or row["val_accuracy"] > progress.best["val_accuracy"]:
            progress.best = {key: row[key] for key in ("epoch", "val_loss", "val_accuracy")}
            if self.processes.first:
                facts = {"epoch": row["epoch"]}
                checkpoint.save_weights(self.run.best, self.step.scored, self.config.network, self.data, **facts)
        progress.begin_next_epoch(row)
        self.save()
        if self.processes.first:
            self.run.write_results(progress.history)

    def _evaluate(self, model: nn.Module, loader: Loader, what: str, tta: str = "none") -> Answers:
        def advance(count: int) -> None:
            self.reporter.advance(count * self.processes.count)
            if self.processes.count == 1 and self.request.signum is not None:
                self.save()
                self._answer()

        self.processes.share_buffers(model)
        self.reporter.begin(what, loader.num_images * self.processes.count)
        answers = evaluate(model, loader, amp=self.amp, tta=tta, advance=advance, processes=self.processes)
        (signum,) = self.processes.largest(self.request.signum or 0)
        if signum:
            self.request.signum = signum
            self.save()
            self._answer()
        return answers

    def _finish(self) -> dict[str, Any]:
        progress, run = self.progress, self.run
        if self.processes.first:
            self._draw_curves()
        self.processes.everyones(None)  # the best weights are written
        best, _, _ = checkpoint.load_weights(run.best, trusted=self.config.network.name)
        best.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        answers = self._evaluate(best, self.loaders.test, "test")
        self._require_finite(answers.loss, "test loss")
        metrics = {
            "test_accuracy": answers.accuracy,
            "test_loss": answers.loss,
            **self._augmented_score(best),
            "num_test_images": len(answers.labels),
            "weights": "of the best validation accuracy" if self.loaders.val is not None else "of the last epoch",
            "best": progress.best,
            "epochs": progress.epoch,
            "steps": progress.step,
            "plateau_watches": f"{'validation' if self.loaders.val is not None else 'training'} {self.config.monitor}",
            "val_size": self.loaders.num_val,
            "train_seconds": round(sum(row["seconds"] for row in progress.history), 3),
            "recipe": self.config.recipe,
            "model": self.config.network.name,
            "num_parameters": count_parameters(self.network),
            "loader": self.loaders.train.name,
            "device": str(self.device),
            "processes": self.processes.count,
            "amp": self.amp,
            "lr": self.config.lr,
            "data_sha256": self.data.sha256,
            "test_data_sha256": self.loaders.test.beton.sha256,
            "seed": self.config.seed,
        }
        if self.processes.first:
            predictions = Predictions(
                index=answers.indices,
                label=answers.labels,
                logits=answers.logits,
                weights_sha256=checkpoint.file_sha256(run.best),
                data_sha256=self.loaders.test.beton.sha256,
            )
            checkpoint.save_predictions(run.predictions, predictions)
            run.write_metrics(metrics)
        log.info(
            "test accuracy %.2f%%, loss %.4f, on %d images",
            answers.accuracy * 100,
            answers.loss,
            len(answers.labels),
        )
        return metrics

    def _augmented_score(self, best: nn.Module) -> dict[str, Any]:
        if self.config.tta == "none":
            return {}
        answers = self._evaluate(best, self.loaders.test, f"test, {self.config.tta}", self.config.tta)
        log.info("with test-time augmentation (%s): %.2f%%", self.config.tta, answers.accuracy * 100)
        return {"tta": self.config.tta, "tta_accuracy": answers.accuracy, "tta_loss": answers.loss}

    def _draw_curves(self) -> None:
        from fastcifar import plotting

        history = self.progress.history
        self.run.write_results(history)
        write_atomically(self.run.curves, lambda partial: plotting.save(plotting.curves(history), partial))


def _found(curve: LrCurve) -> float:
    if curve.why_not is not None:
        raise DivergedError(f"the range test found no learning rate: {curve.why_not}; or give --lr a number")
    return curve.suggestions[AUTO_SUGGESTION]


def _generators(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
