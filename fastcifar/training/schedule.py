"""Learning-rate schedules of torch, each stepped as it needs: after a step, or after an epoch with its metrics."""

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
from fastcifar.training.checkpoint import has_structure

log = logging.getLogger(__name__)
WARMUP_FACTOR = 0.01
MOMENTUM_RANGE = 0.05  # onecycle: up and down; for a momentum of 0.9 that is torch's default, 0.85 to 0.95
LENGTH_INDEPENDENT = ("plateau", "step", "multistep", "none")
"""Schedules that do not depend on the number of steps."""


class Schedule:
    """The schedule of `config` for `num_steps` steps, `steps_per_epoch` per epoch."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: TrainConfig, num_steps: int, steps_per_epoch: int
    ) -> None:
        settings = config.schedule
        self._name, self._monitor = settings.name, settings.monitor
        self._warmup_left = self._warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
        if self._warmup_steps >= num_steps:
            log.warning("the warm-up of %d steps does not end before the run, of %d", self._warmup_steps, num_steps)
        self._by_step: LRScheduler | None = None
        self._by_epoch: LRScheduler | ReduceLROnPlateau | None = None
        if settings.name == "onecycle":
            self._by_step = _one_cycle(optimizer, config, num_steps)
        elif settings.name == "cosine":
            self._by_step = self._cosine(optimizer, settings.min_lr, num_steps)
        elif self._warmup_steps:
            self._by_step = self._warmup(optimizer)
        if settings.name == "plateau":
            self._by_epoch = ReduceLROnPlateau(
                optimizer,
                mode="max" if settings.monitor == "accuracy" else "min",
                factor=settings.factor,
                patience=settings.patience,
                min_lr=settings.min_lr,
            )
        elif settings.name == "step":
            self._by_epoch = StepLR(optimizer, settings.step_size, gamma=settings.factor)
        elif settings.name == "multistep":
            self._by_epoch = MultiStepLR(optimizer, list(settings.milestones), gamma=settings.factor)

    def _warmup(self, optimizer: torch.optim.Optimizer) -> LinearLR:
        return LinearLR(optimizer, start_factor=WARMUP_FACTOR, total_iters=self._warmup_steps)

    def _cosine(self, optimizer: torch.optim.Optimizer, min_lr: float, num_steps: int) -> LRScheduler:
        warmup = min(self._warmup_steps, num_steps)
        if not warmup:
            return CosineAnnealingLR(optimizer, T_max=num_steps, eta_min=min_lr)
        cosine = CosineAnnealingLR(optimizer, T_max=max(num_steps - warmup, 1), eta_min=min_lr)
        return SequentialLR(optimizer, [self._warmup(optimizer), cosine], milestones=[warmup])

    def after_step(self) -> None:
        """Call after each step of the optimizer."""
        if self._by_step is not None:
            _step(self._by_step)
        self._warmup_left = max(self._warmup_left - 1, 0)

    def after_epoch(self, row: dict[str, Any]) -> None:
        """Call after each epoch with its row of results: plateau watches one of its metrics."""
        if isinstance(self._by_epoch, ReduceLROnPlateau):
            if not self._warmup_left:
                metric = row[f"val_{self._monitor}"]
                self._by_epoch.step(row[f"train_{self._monitor}"] if metric is None else metric)
        elif self._by_epoch is not None:
            _step(self._by_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Part of the checkpoint."""
        state: dict[str, Any] = {"name": self._name, "warmup_left": self._warmup_left}
        return state | {name: schedule.state_dict() for name, schedule in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint. Raises KeyError if it is of another schedule."""
        if not has_structure(state, self.state_dict()):
            raise KeyError(f"it has no state of the schedule {self._name}")
        self._warmup_left = state["warmup_left"]
        for name, schedule in self._parts().items():
            schedule.load_state_dict(state[name])

    def _parts(self) -> dict[str, LRScheduler | ReduceLROnPlateau]:
        parts = {"by_step": self._by_step, "by_epoch": self._by_epoch}
        return {name: schedule for name, schedule in parts.items() if schedule is not None}


def _step(schedule: LRScheduler) -> None:
    with warnings.catch_warnings():  # loss scaling may skip the first steps of the optimizer
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        schedule.step()


def _one_cycle(optimizer: torch.optim.Optimizer, config: TrainConfig, num_steps: int) -> OneCycleLR:
    """Smith and Topin 2018: the rate rises and falls, the momentum of the optimizer, if any, falls and rises."""
    settings, momentum = config.schedule, config.optimizer.momentum
    groups, total = optimizer.param_groups, num_steps + 1  # it is stepped once more after the last step
    pct_start = settings.pct_start if settings.pct_start * total != 1 else 1.5 / total  # else torch divides 0 by 0
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in groups],
        total_steps=total,
        pct_start=pct_start,
        anneal_strategy="cos" if settings.anneal_strategy == "cos" else "linear",
        cycle_momentum=momentum > 0 and not optimizer.defaults.keys().isdisjoint(("momentum", "betas")),
        base_momentum=max(momentum - MOMENTUM_RANGE, 0.0),
        max_momentum=min(momentum + MOMENTUM_RANGE, 0.999),
        div_factor=settings.div_factor,
        final_div_factor=settings.final_div_factor,
    )
