"""What is trained: network, optimiser, schedule and how far they are. What a checkpoint holds."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import torch

from fastcifar.config import AUTO_SUGGESTIONS, CHANGEABLE, LrRangeTestConfig, TrainConfig
from fastcifar.errors import CheckpointError, DataError, DivergedError, FastcifarError, UsageError, one_line
from fastcifar.models import require_side
from fastcifar.training import checkpoint
from fastcifar.training.advice import range_test_line
from fastcifar.training.data import Loaders
from fastcifar.training.device import choose_amp
from fastcifar.training.distributed import Processes
from fastcifar.training.find_lr import find_for, first_network
from fastcifar.training.lr_finder import LrCurve
from fastcifar.training.optimizer import make_optimizer
from fastcifar.training.progress import Progress, Reporter
from fastcifar.training.run_folder import RunFolder, processor
from fastcifar.training.schedule import STRETCHABLE, Schedule
from fastcifar.training.step import Step
from fastcifar.training.sync_norm import synchronised

log = logging.getLogger(__name__)


class Learner:
    """Made of the settings of a run, whose learning rate is found first where it is 'auto': `config` then holds it."""

    def __init__(
        self, config: TrainConfig, loaders: Loaders, device: torch.device, processes: Processes, reporter: Reporter
    ) -> None:
        self.data, self.device, self.processes = loaders.info, device, processes
        self._held_out = loaders.val is not None
        self._test_sha256 = loaders.test.beton.sha256
        self.amp = choose_amp(device, config.runtime.amp)
        self._num_threads = torch.get_num_threads()  # also when the training makes way for other processes
        processes.begin(device)
        self._steps_per_epoch = len(loaders.train)
        self.num_steps = self._steps_per_epoch * config.epochs
        if config.max_steps is not None:
            self.num_steps = min(self.num_steps, config.max_steps)
        self.network = first_network(config, self.data, device)
        for side, _ in config.progressive:
            require_side(self.network, side, config.model.name)
        self.lr_curve: LrCurve | None = None
        if config.optimizer.lr is None:
            config = config.with_settings(lr=config.peak_lr)
        if config.optimizer.lr == "auto":
            curve = processes.of_first(self._find_lr(config, loaders, reporter) if processes.first else None)
            assert curve is not None
            config = _with_rate(config, _found(curve, config))
            self.lr_curve = curve
        if config.runtime.sync_bn and processes.count > 1:  # only now: the range test runs in the first process alone
            self.network = synchronised(self.network, device)
        self.config = config
        self.optimizer = make_optimizer(self.network, config)
        model = processes.wrap(self.network, device, config.runtime.deterministic)
        called: Any = torch.compile(model) if config.runtime.compile else model
        self.step = Step(called, self.network, self.optimizer, config, self.amp)
        self.schedule = Schedule(self.optimizer, config, self.num_steps, len(loaders.train))
        self.progress = Progress()
        if not processes.first:
            torch.manual_seed((config.seed + processes.rank) % 2**63)  # of dropout: the images are not drawn from it

    def _find_lr(self, config: TrainConfig, loaders: Loaders, reporter: Reporter) -> LrCurve:
        test, batches = LrRangeTestConfig.for_optimizer(config.optimizer.name), loaders.whole_batches()
        reporter.begin("range test of the learning rate", test.num_steps)
        try:
            return find_for(config, self.network, batches, self.amp, test, reporter.advance)
        finally:
            batches.close()

    @property
    def lr(self) -> float:
        """The learning rate now."""
        return float(self.optimizer.param_groups[0]["lr"])

    def save(self, run: RunFolder) -> None:
        """Write what is needed to go on from here to weights/last.pt. Called in all processes, done by the first."""
        generators = self.processes.everyones(_generators(self.device))
        if not self.processes.first:
            return
        state = {
            "model": self.network.state_dict(),
            "step": self.step.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
            "rng": generators,
            "config": self.config.to_settings(),
            "data": {"train": self.data.sha256, "test": self._test_sha256, "classes": list(self.data.class_names)},
            "num_steps": self.num_steps,
            "circumstances": self._circumstances(),
        }
        checkpoint.save_last(run, state)

    def _circumstances(self) -> dict[str, Any]:
        return {
            "torch": str(torch.__version__),
            "number of threads": self._num_threads,
            "number of processes": self.processes.count,
            "device": self.device.type,
            "processor": processor(),
        }

    def restore(self, run: RunFolder) -> None:
        """Go on from weights/last.pt. Raises CheckpointError, DataError or UsageError if that cannot be."""
        state = checkpoint.load_last(run)
        try:
            self._restore(run, state)
        except FastcifarError:
            raise
        except Exception as error:  # it is whole, and somebody else's: what it leads to is all kinds of things
            raise CheckpointError(
                f"{run.last}: belongs to another network or other settings than {run.config} names "
                f"({one_line(error, 300)})"
            ) from error
        self._forget_lost_best(run)
        log.info("resumed %s after step %d (epoch %d)", run.path, self.progress.step, self.progress.epoch + 1)
        self.processes.everyones(None)  # all have read it before the first writes it again

    def _restore(self, run: RunFolder, state: dict[str, Any]) -> None:
        self.progress = found = Progress.restored(state["progress"])
        for name, now_there in (("train", self.data.sha256), ("test", self._test_sha256)):
            if (then := state["data"][name]) != now_there:
                raise DataError(
                    f"{run.path}: was trained with a {name}.beton of SHA-256 {then[:16]}…; that in "
                    f"{self.config.data.data_dir} has {now_there[:16]}…: convert that source again or start a new run"
                )
        self._require_same_settings(run, state["config"])
        steps, images = self._steps_per_epoch, found.batch * self.config.batch_size
        if found.batch > steps or found.step != found.epoch * steps + found.batch or found.seen != images:
            raise ValueError(f"step {found.step} is not batch {found.batch} after {found.epoch} epochs of {steps}")
        self._require_same_length(run, state)
        now = self._circumstances()
        for what, then in state["circumstances"].items():
            if then != now.get(what):
                log.warning(
                    "resumed with %s %s, begun with %s: the results may differ in the last bits",
                    what,
                    now.get(what),
                    then,
                )
        self.network.load_state_dict(state["model"])
        self.step.load_state_dict(state["step"])
        self.schedule.load_state_dict(state["schedule"])
        if len(state["rng"]) == self.processes.count:
            _restore_generators(state["rng"][self.processes.rank], self.device)

    def _forget_lost_best(self, run: RunFolder) -> None:
        """Forget which epoch was the best if its weights are lost: another's must not be scored for them."""
        best = self.progress.best
        if best is None:
            return
        try:
            _, _, facts = checkpoint.load_weights(run.best, trusted=self.config.model.name)
            if facts.get("epoch") == best["epoch"]:
                return
            if not self._held_out and facts.get("epoch") == self.progress.epoch + 1:
                self.progress.best = None  # written at the end of the epoch that is gone on with: it will be again
                return
            lost = f"{run.best}: holds the weights of epoch {facts.get('epoch')}"
        except CheckpointError as error:
            lost = str(error)
        log.warning("%s; those of epoch %s, the best, are lost: the best from here on counts", lost, best["epoch"])
        self.progress.best = None

    def _require_same_settings(self, run: RunFolder, old: dict[str, Any]) -> None:
        now = self.config.to_settings()
        for key in now:
            if key not in CHANGEABLE and now[key] != old.get(key):
                raise CheckpointError(
                    f"{run.config}: {key} is {now[key]}, and was {old.get(key)} when the checkpoint was written; "
                    "put it back or start a new run"
                )

    def _require_same_length(self, run: RunFolder, state: dict[str, Any]) -> None:
        done, old, most = self.progress, state["config"], self.config.max_steps
        if most is not None and most < done.step:
            raise UsageError(f"max_steps is {most}; {run.path} has done {done.step}: expected at least that")
        if self.num_steps < done.step:
            begun = -(-done.step // self._steps_per_epoch)
            raise UsageError(f"epochs is {self.config.epochs}; {run.path} has begun {begun}: expected at least that")
        sched = self.config.schedule.name
        fixed = "progressive sizing" if self.config.progressive else f"{sched} schedule"
        stretches = sched in STRETCHABLE and not self.config.progressive
        if not stretches and state["num_steps"] != self.num_steps:
            raise UsageError(
                f"the {fixed} of {run.path} was made for {state['num_steps']} steps and cannot "
                f"stretch to {self.num_steps}; expected the same --epochs ({old['epochs']}) and --max-steps "
                f"({old['max_steps']})"
            )


def _found(curve: LrCurve, config: TrainConfig) -> float:
    if curve.why_not is not None:
        raise DivergedError(
            f"the range test found no learning rate: {curve.why_not}; with {range_test_line(config)}; or give --lr a "
            "number"
        )
    return curve.suggestions[AUTO_SUGGESTIONS[config.optimizer.name]]


def _with_rate(config: TrainConfig, lr: float) -> TrainConfig:
    if config.schedule.min_lr > lr:
        raise UsageError(
            f"min_lr is {config.schedule.min_lr:g}, above the rate that the range test found, {lr:.3g}; expected less, "
            "or give --lr a number"
        )
    return config.with_settings(lr=lr)


def _generators(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
