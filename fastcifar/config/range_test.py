"""How the range test of the learning rate goes."""

from __future__ import annotations

from dataclasses import dataclass

from fastcifar.checks import require_choice, require_float, require_int
from fastcifar.errors import UsageError

LR_MODES = ("exponential", "linear")
LR_SUGGESTIONS = ("minimum", "steepest", "valley")
AUTO_SUGGESTIONS = {"sgd": "minimum", "adamw": "steepest", "muon": "steepest"}
"""The suggestion that is taken, by optimiser. Measured, seed 0, CIFAR-10 as JPEG copies, batches of 128. The small
network, two epochs, test: SGD 53% at 0.005 (the steepest), 62% at 0.012 (the minimum), 66% at 0.025; AdamW 73% at
0.0023 (the steepest), 65% at 0.005, 56% at 0.012 (the minimum). ResNet-18 with SGD, three epochs, validation: 70.4% at
0.0019 (the steepest), 74.3% at 0.015 (the minimum); with batches of 64, one epoch, test: 62.8% at 0.0023 and 52.9% at
0.012 (the minimum)."""


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """How the rate rises, and when the test ends."""

    num_steps: int = 100
    """Steps, and rates tried."""
    start_lr: float = 1e-7
    """Rate of the first step."""
    end_lr: float = 10.0
    """Rate of the last step, if the loss has not diverged before it."""
    mode: str = "exponential"
    """'exponential' or 'linear'."""

    def __post_init__(self) -> None:
        require_int("steps", self.num_steps, 2)
        require_float("start_lr", self.start_lr, 0.0, above=True)
        require_float("end_lr", self.end_lr, 0.0, above=True)
        if self.start_lr >= self.end_lr:
            raise UsageError(f"start_lr is {self.start_lr:g} and end_lr {self.end_lr:g}; expected end_lr to be larger")
        require_choice("mode", self.mode, LR_MODES)
