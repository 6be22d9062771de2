"""Optimiser and learning-rate schedule, both torch's own."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from fastcifar.config import TrainConfig

PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.2, 3


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with momentum, Nesterov's where it is above 0."""
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )


class Schedule:
    """Steps a torch schedule when it needs to be: per batch (cosine), or per epoch by a loss (plateau)."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, num_steps: int) -> None:
        self._per_step = self._per_epoch = None
        if config.sched == "cosine":
            self._per_step = CosineAnnealingLR(optimizer, T_max=num_steps)
        elif config.sched == "plateau":
            self._per_epoch = ReduceLROnPlateau(optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE)

    def after_step(self) -> None:
        """Call after each step of the optimiser."""
        if self._per_step is not None:
            self._per_step.step()

    def after_epoch(self, loss: float) -> None:
        """Call after each epoch with the loss that a plateau watches."""
        if self._per_epoch is not None:
            self._per_epoch.step(loss)

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        inner = self._per_step or self._per_epoch
        return {} if inner is None else inner.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint."""
        inner = self._per_step or self._per_epoch
        if inner is not None:
            inner.load_state_dict(state)
