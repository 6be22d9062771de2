"""Learning-rate schedules, all torch's own, each stepped as it needs: after a step, or after an epoch by a score."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from fastcifar.config import TrainConfig

log = logging.getLogger(__name__)
WARMUP_FROM = 0.01
MOMENTUM_SWING = 0.05  # onecycle: with the usual 0.9 it is torch's 0.85 to 0.95
STRETCHABLE = ("plateau", "step", "multistep", "none")
"""Schedules that do not depend on how many steps there will be."""


class Schedule:
    """The schedule of `config` for `num_steps` steps, of which `steps_per_epoch` make an epoch."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: TrainConfig, num_steps: int, steps_per_epoch: int
    ) -> None:
        self._kind, self._monitor = config.schedule.name, config.schedule.monitor
        self._warmup_left = self._warmup_steps = round(config.schedule.warmup_epochs * steps_per_epoch)
        if self._warmup_steps >= num_steps:
            log.warning(
                "the warm-up of %d steps is not over when the run ends, after %d", self._warmup_steps, num_steps
            )
        self._by_step: dict[str, LRScheduler] = {}
        self._by_epoch: LRScheduler | ReduceLROnPlateau | None = None
        if config.schedule.name == "onecycle":
            self._by_step["onecycle"] = _one_cycle(optimizer, config, num_steps)
        elif config.schedule.name == "cosine":
            self._by_step["cosine"] = self._cosine(optimizer, config, num_steps)
        elif self._warmup_steps:
            self._by_step["warmup"] = self._warmup(optimizer)
        if config.schedule.name == "plateau":
            self._by_epoch = ReduceLROnPlateau(
                optimizer,
                mode="max" if config.schedule.monitor == "accuracy" else "min",
                factor=config.schedule.factor,
                patience=config.schedule.patience,
                min_lr=config.schedule.min_lr,
            )
        elif config.schedule.name == "step":
            self._by_epoch = StepLR(optimizer, config.schedule.step_size, gamma=config.schedule.factor)
        elif config.schedule.name == "multistep":
            self._by_epoch = MultiStepLR(optimizer, list(config.schedule.milestones), gamma=config.schedule.factor)

    def _warmup(self, optimizer: torch.optim.Optimizer) -> LinearLR:
        return LinearLR(optimizer, start_factor=WARMUP_FROM, total_iters=self._warmup_steps)

    def _cosine(self, optimizer: torch.optim.Optimizer, config: TrainConfig, num_steps: int) -> LRScheduler:
        warmup = min(self._warmup_steps, num_steps)
        if not warmup:
            return CosineAnnealingLR(optimizer, T_max=num_steps, eta_min=config.schedule.min_lr)
        cosine = CosineAnnealingLR(optimizer, T_max=max(num_steps - warmup, 1), eta_min=config.schedule.min_lr)
        return SequentialLR(optimizer, [self._warmup(optimizer), cosine], milestones=[warmup])

    def after_step(self) -> None:
        """Call after each step of the optimiser."""
        for schedule in self._by_step.values():
            _step(schedule)
        self._warmup_left = max(self._warmup_left - 1, 0)

    def after_epoch(self, row: dict[str, Any]) -> None:
        """Call after each epoch with its row of results: a plateau watches one of its figures."""
        if isinstance(self._by_epoch, ReduceLROnPlateau):
            if not self._warmup_left:
                watched = row[f"val_{self._monitor}"]
                self._by_epoch.step(row[f"train_{self._monitor}"] if watched is None else watched)
        elif self._by_epoch is not None:
            _step(self._by_epoch)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "kind": self._kind,
            "warmup_left": self._warmup_left,
            "by_step": {name: schedule.state_dict() for name, schedule in self._by_step.items()},
            "by_epoch": None if self._by_epoch is None else self._by_epoch.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises KeyError if it is of another schedule."""
        if not _is_like(state, self.state_dict()):
            raise KeyError(f"it holds no state of a schedule {self._kind}")
        self._warmup_left = state["warmup_left"]
        for name, schedule in self._by_step.items():
            schedule.load_state_dict(state["by_step"][name])
        if self._by_epoch is not None:
            self._by_epoch.load_state_dict(state["by_epoch"])


def _is_like(found: Any, fresh: Any) -> bool:
    """Whether `found` has the keys of `fresh`, and kinds of values that it can have later: a schedule takes whatever
    it is given for its own attributes, methods too."""
    if isinstance(fresh, dict):
        same = isinstance(found, dict) and found.keys() == fresh.keys()
        return same and all(_is_like(found[key], fresh[key]) for key in fresh)
    if isinstance(fresh, (list, tuple)):
        same = isinstance(found, (list, tuple)) and len(found) == len(fresh)
        return same and all(map(_is_like, found, fresh))
    if isinstance(fresh, (int, float)) and not isinstance(fresh, bool):
        return (type(found) in (int, float) and abs(found) < 2**63) or found == fresh
    return type(found) is type(fresh) and (not isinstance(fresh, str) or found == fresh)


def _step(schedule: LRScheduler) -> None:
    with warnings.catch_warnings():  # loss scaling may have left out the optimiser's first steps, rightly
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        schedule.step()


def _one_cycle(optimizer: torch.optim.Optimizer, config: TrainConfig, num_steps: int) -> OneCycleLR:
    """Smith and Topin 2018: the rate up and down again, momentum the other way where the optimiser has one."""
    groups, total = optimizer.param_groups, num_steps + 1  # it is stepped once more after the last step
    pct_start = (
        config.schedule.pct_start if config.schedule.pct_start * total != 1 else 1.5 / total
    )  # torch divides 0 by 0 there
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in groups],
        total_steps=total,
        pct_start=pct_start,
        anneal_strategy="cos" if config.schedule.anneal_strategy == "cos" else "linear",
        cycle_momentum=config.optimizer.momentum > 0
        and not optimizer.defaults.keys().isdisjoint(("momentum", "betas")),
        base_momentum=max(config.optimizer.momentum - MOMENTUM_SWING, 0.0),
        max_momentum=min(config.optimizer.momentum + MOMENTUM_SWING, 0.999),
        div_factor=config.schedule.div_factor,
        final_div_factor=config.schedule.final_div_factor,
    )
