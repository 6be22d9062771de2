"""How the range test of the learning rate goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcifar.errors import UsageError
from fastcifar.io.checks import require_choice, require_float, require_int

LR_MODES = ("exponential", "linear")
LR_SUGGESTIONS = ("minimum", "steepest", "valley")
LR_RANGES = {"sgd": (1e-4, 10.0), "adamw": (1e-5, 1.0), "muon": (1e-4, 10.0)}
"""First and last rate, by optimiser: no wider than needed, so that 30 steps are enough."""
AUTO_SUGGESTIONS = {"sgd": "minimum", "adamw": "valley", "muon": "valley"}
"""The suggestion that is taken, by optimiser (benchmarks/lr_find_check.py checks it). Measured on the small network,
seed 0, two epochs of 10,000 images of CIFAR-10 as JPEG copies, batches of 128, 5,000 images held out: SGD 52.8% at the
minimum (0.0075), 41.9% at a third of it, 46.0% at three times. AdamW, whose valley is 0.0013 and minimum 0.014: 53.9%
at 0.0003, 57.8% at 0.001, 47.4% at 0.003."""


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """How the rate rises, and when the test ends."""

    num_steps: int = 100
    """Steps, and rates tried."""
    start_lr: float = 1e-5
    """Rate of the first step."""
    end_lr: float = 10.0
    """Rate of the last step, if the loss has not diverged before it."""
    mode: str = "exponential"
    """'exponential' or 'linear'."""

    @classmethod
    def of(
        cls, optimizer: str, *, start_lr: float | None = None, end_lr: float | None = None, **given: Any
    ) -> RangeTest:
        """The test for this optimiser; the rates that are not given are those of LR_RANGES."""
        start, end = LR_RANGES[optimizer]
        return cls(start_lr=start if start_lr is None else start_lr, end_lr=end if end_lr is None else end_lr, **given)

    def __post_init__(self) -> None:
        require_int("steps", self.num_steps, 2)
        require_float("start_lr", self.start_lr, 0.0, above=True)
        require_float("end_lr", self.end_lr, 0.0, above=True)
        if self.start_lr >= self.end_lr:
            raise UsageError(f"start_lr is {self.start_lr:g} and end_lr {self.end_lr:g}; expected end_lr to be larger")
        require_choice("mode", self.mode, LR_MODES)
