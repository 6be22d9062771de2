"""The least that can be trained: a network of five thousand parameters; and a signal while it is."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from fastcifar.config import TrainConfig
from fastcifar.training.progress import SilentReporter

NETWORK = "tests.tiny:network"


def network(num_classes: int) -> nn.Module:
    """Three convolutions of stride 2; 5,170 parameters for ten classes."""

    def stage(before: int, after: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()

    stages = (*stage(3, 8), *stage(8, 16), *stage(16, 24))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes))


def tiny(data_dir: object, **settings: Any) -> TrainConfig:
    """A training of some tenths of a second: two epochs of two steps, where `data_dir` has 80 training images."""
    few = {"model": NETWORK, "epochs": 2, "batch_size": 36, "lr": 0.05}
    return TrainConfig.from_settings(**{"data_dir": str(data_dir), **few, **settings})


class Interrupts(SilentReporter):
    """Sends a signal to this process at one step."""

    def __init__(self, at_step: int, signum: int) -> None:
        self.at_step, self.signum = at_step, signum

    def step(self, step: int, loss: float, remaining_s: float) -> None:
        if step == self.at_step:
            os.kill(os.getpid(), self.signum)
