"""The training loop: steps, validation, saving, stopping, and one look at the test set at the end."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from fastcifar.config import TrainConfig
from fastcifar.errors import CheckpointError, DataError, DivergedError, FastcifarError, Stopped, UsageError
from fastcifar.files import write_atomically
from fastcifar.loaders import Loader
from fastcifar.models import count_parameters, make_model
from fastcifar.training import checkpoint
from fastcifar.training.checkpoint import Predictions
from fastcifar.training.data import Loaders
from fastcifar.training.device import (
    choose_device,
    keep_freed_memory,
    make_deterministic,
    uses_bf16,
)
from fastcifar.training.evaluate import Answers, evaluate
from fastcifar.training.run_folder import RunFolder, create_run, log_file
from fastcifar.training.schedule import Schedule, make_optimizer
from fastcifar.training.signals import StopRequest
from fastcifar.training.step import train_step

log = logging.getLogger(__name__)
SAVE_EVERY_S = 300.0
ESTIMATE_AFTER = 20
LONG_S = 3600.0
FAST_RECIPE = (
    "fastcifar train --model small --epochs 7 --batch-size 256 --lr 0.3 --weight-decay 7e-4 "
    "--sched cosine --crop-padding 2 --cutout-size 0"
)
CHECK_LOSS_EVERY = 20  # on a GPU, where looking at a number waits for the device


class Reporter(Protocol):
    """What shows progress while a run goes on."""

    def begin(self, what: str, total: int) -> None:
        """`total` images of `what` ('epoch 3/50', 'test') follow."""

    def advance(self, count: int) -> None:
        """`count` images more are done."""

    def step(self, step: int, loss: float) -> None:
        """Step `step` (from 1) had this training loss; on a GPU not every step is told."""


class SilentReporter:
    """Shows nothing."""

    def begin(self, what: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...

    def step(self, step: int, loss: float) -> None: ...


@dataclass
class Progress:
    """How far a run is. Part of the checkpoint."""

    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Batches done of the epoch under way."""
    step: int = 0
    """Steps done in all."""
    loss_sum: float = 0.0
    """Sum of the losses of the images of the epoch under way."""
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    """Time spent in the epoch under way before the run was stopped."""
    best: dict[str, Any] | None = None
    """Epoch, val_loss and val_accuracy of the best epoch."""
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    config: TrainConfig,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    name: str | None = None,
    resume: RunFolder | None = None,
    reporter: Reporter | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Train as `config` says; return the run folder and what its metrics.json holds.

    Makes a new folder `name` in `runs_dir` (named after the network if not given), or goes on in that of `resume`.
    Raises DataError (4), DivergedError (5), CheckpointError (6), UsageError (2), and Stopped (130, 143) after a
    signal, when everything is saved.
    """
    with closing(Trainer(config, reporter or SilentReporter())) as trainer:
        run = resume or create_run(runs_dir, config.model if name is None else name)
        with _only_one(run), log_file(run.log):
            trainer.use(run)
            if resume is not None:
                trainer.restore()
            run.write_config(config)
            return run, trainer.run_to_the_end()


@contextmanager
def _only_one(run: RunFolder) -> Iterator[None]:
    """No two processes write into one run folder."""
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

    def __init__(self, config: TrainConfig, reporter: Reporter) -> None:
        self.config, self.reporter = config, reporter
        self.request = StopRequest()
        self.device = choose_device(config.device)
        if config.deterministic:
            make_deterministic(self.device)
        if self.device.type == "cpu" and not keep_freed_memory():
            log.info("the C library is not glibc: freed memory is given back at each step")
        self.bf16 = uses_bf16(self.device, config.amp)
        self.loaders = Loaders(config, self.device)
        self.data = self.loaders.info
        torch.manual_seed(config.seed)
        model = make_model(config.model, len(self.data.class_names))
        self.model: nn.Module = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.model, config)
        self.num_steps = len(self.loaders.train) * config.epochs
        if config.max_steps is not None:
            self.num_steps = min(self.num_steps, config.max_steps)
        self.schedule = Schedule(self.optimizer, config, self.num_steps)
        self.progress = Progress()
        self._saved_at = time.monotonic()

    def use(self, run: RunFolder) -> None:
        """Write into this folder."""
        self.run = run

    def close(self) -> None:
        """Give back the loaders' threads and processes."""
        self.loaders.close()

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Everything that is needed to go on from here."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
            "rng": torch.get_rng_state(),
            "config": asdict(self.config),
            "data": {"train": self.data.sha256, "classes": list(self.data.class_names)},
            "num_steps": self.num_steps,
            "num_threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        checkpoint.save_last(self.run, state)
        self._saved_at = time.monotonic()

    def restore(self) -> None:
        """Go on from weights/last.pt."""
        state = checkpoint.load_last(self.run)
        if state["data"]["train"] != self.data.sha256:
            raise DataError(
                f"{self.run.path}: was trained on a train.beton with SHA-256 {state['data']['train'][:16]}…; that in "
                f"{self.config.data_dir} has {self.data.sha256[:16]}…: convert the same source again or start a new run"
            )
        old = state["config"]
        if self.config.sched == "cosine" and state["num_steps"] != self.num_steps:
            raise UsageError(
                f"the cosine schedule of {self.run.path} was made for {state['num_steps']} steps and cannot stretch to "
                f"{self.num_steps}; expected the same --epochs ({old['epochs']}) and --max-steps ({old['max_steps']})"
            )
        for what, then, now in (
            ("torch", state["torch"], str(torch.__version__)),
            ("number of threads", state["num_threads"], torch.get_num_threads()),
        ):
            if then != now:
                log.warning(
                    "resumed with %s %s, begun with %s: the results may differ in the last bits",
                    what,
                    now,
                    then,
                )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.run.last}: belongs to another network than {self.config.model}") from error
        torch.set_rng_state(state["rng"])
        self.progress = Progress(**state["progress"])
        log.info("resumed %s after step %d (epoch %d)", self.run.path, self.progress.step, self.progress.epoch + 1)

    # ---- the loop ----------------------------------------------------------------------------------------------

    def run_to_the_end(self) -> dict[str, Any]:
        """Train what is left, evaluate, and write everything that the run folder holds."""
        log.info("loader: %s", self.loaders.chosen)
        log.info(
            "%s, %s parameters, on %s%s; %d images to train on, %d to validate",
            self.config.model,
            f"{count_parameters(self.model):,}",
            self.device,
            " with bf16 autocast" if self.bf16 else "",
            self.loaders.num_train,
            self.loaders.num_val,
        )
        with self.request:
            # an epoch whose steps are done may still have to be validated, after a stop
            while self.progress.step < self.num_steps or self.progress.batch:
                self._epoch()
            return self._finish()

    def _epoch(self) -> None:
        progress, loader = self.progress, self.loaders.train
        self.reporter.begin(f"epoch {progress.epoch + 1}/{self.config.epochs}", loader.num_images)
        self.reporter.advance(progress.batch * self.config.batch_size)
        self.model.train()
        began = time.monotonic() - progress.seconds
        sums = torch.tensor([progress.loss_sum, progress.correct], dtype=torch.float64)
        sums = sums.to(self.device) if self.device.type != "mps" else sums.float().to(self.device)

        def keep_sums() -> None:
            progress.loss_sum, progress.correct = float(sums[0]), round(float(sums[1]))
            progress.seconds = time.monotonic() - began

        done = progress.step >= self.num_steps  # stopped after its last step: only the validation is left
        for batch in () if done else loader.epoch(progress.epoch, progress.batch):
            loss, logits = train_step(self.model, self.optimizer, batch.images, batch.labels, self.bf16)
            progress.step += 1
            progress.batch += 1
            progress.seen += len(batch.labels)
            sums += torch.stack((loss.detach() * len(batch.labels), (logits.argmax(1) == batch.labels).sum())).to(sums)
            if self.device.type == "cpu" or progress.step % CHECK_LOSS_EVERY == 0:
                told = float(loss.detach())
                self._require_finite(told)
                self.reporter.step(progress.step, told)
            self.schedule.after_step()
            self.reporter.advance(len(batch.labels))
            if progress.step == ESTIMATE_AFTER and progress.epoch == 0:
                rest = self._tell_rest(time.monotonic() - began)
                if rest > LONG_S and self.config.model != "small":
                    log.info("a faster recipe: %s", FAST_RECIPE)
            if progress.step >= self.num_steps:
                break
            if self.request.signum is not None or time.monotonic() - self._saved_at > SAVE_EVERY_S:
                keep_sums()
                self.save()
                self._answer()
        keep_sums()
        self._require_finite(progress.loss_sum / progress.seen)
        self._end_epoch()

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
            answers = self._evaluate(self.model, self.loaders.val, "validation")
            self._require_finite(answers.loss, "validation loss")
            row["val_loss"], row["val_accuracy"] = answers.loss, answers.accuracy
            text += f"  validation loss {answers.loss:.4f} accuracy {answers.accuracy:.2%}"
        log.info("%s  lr %.4g  %.0f images/s", text, row["lr"], row["images_per_s"])
        self._tell_rest(seconds)
        self.schedule.after_epoch(row["train_loss"] if row["val_loss"] is None else row["val_loss"])
        if row["val_accuracy"] is None or progress.best is None or row["val_accuracy"] > progress.best["val_accuracy"]:
            progress.best = {key: row[key] for key in ("epoch", "val_loss", "val_accuracy")}
            checkpoint.save_weights(self.run.best, self.model, self.config.model, self.data, epoch=row["epoch"])
        progress.history.append(row)
        progress.epoch += 1
        progress.batch = progress.seen = progress.correct = 0
        progress.loss_sum = progress.seconds = 0.0
        self.save()
        self.run.write_results(progress.history)

    def _evaluate(self, model: nn.Module, loader: Loader, what: str) -> Answers:
        def advance(count: int) -> None:
            self.reporter.advance(count)
            if self.request.signum is not None:
                self.save()
                self._answer()

        self.reporter.begin(what, loader.num_images)
        return evaluate(model, loader, bf16=self.bf16, advance=advance)

    def _finish(self) -> dict[str, Any]:
        from fastcifar import plotting

        progress = self.progress
        self.run.write_results(progress.history)
        write_atomically(self.run.curves, lambda partial: plotting.save(plotting.curves(progress.history), partial))
        best, _, _ = checkpoint.load_weights(self.run.best)
        best.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        answers = self._evaluate(best, self.loaders.test, "test")
        self._require_finite(answers.loss, "test loss")
        predictions = Predictions(
            index=answers.indices,
            label=answers.labels,
            logits=answers.logits,
            weights_sha256=checkpoint.file_sha256(self.run.best),
            data_sha256=self.loaders.test.beton.sha256,
        )
        checkpoint.save_predictions(self.run.predictions, predictions)
        metrics = {
            "test_accuracy": answers.accuracy,
            "test_loss": answers.loss,
            "num_test_images": len(answers.labels),
            "weights": "of the best validation accuracy" if self.loaders.val is not None else "of the last epoch",
            "best": progress.best,
            "epochs": progress.epoch,
            "steps": progress.step,
            "plateau_watches": "validation loss" if self.loaders.val is not None else "training loss",
            "val_size": self.loaders.num_val,
            "train_seconds": round(sum(row["seconds"] for row in progress.history), 3),
            "model": self.config.model,
            "num_parameters": count_parameters(self.model),
            "loader": self.loaders.train.name,
            "device": str(self.device),
            "amp": "bf16" if self.bf16 else "off",
            "data_sha256": self.data.sha256,
            "test_data_sha256": self.loaders.test.beton.sha256,
            "seed": self.config.seed,
        }
        self.run.write_metrics(metrics)
        log.info(
            "test accuracy %.2f%%, loss %.4f, on %d images",
            answers.accuracy * 100,
            answers.loss,
            len(answers.labels),
        )
        return metrics


def duration(seconds: float) -> str:
    """'2 h 05 min', '3 min 20 s' or '12 s'."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
