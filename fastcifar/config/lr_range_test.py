"""How the range test of the learning rate runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcifar.config.optimizer import describe_rates
from fastcifar.config.setting import Choice, Config, Integer, Number, setting
from fastcifar.errors import UsageError

LR_SUGGESTIONS = ("minimum", "steepest", "valley")
LR_RANGES = {"sgd": (1e-4, 10.0), "adam": (1e-5, 1.0), "adamw": (1e-5, 1.0), "muon": (1e-4, 10.0)}
"""First and last rate, by optimizer: no wider than needed, so that 30 steps are enough."""
AUTO_SUGGESTIONS = {"sgd": "minimum", "adam": "valley", "adamw": "valley", "muon": "valley"}
"""The suggestion that is used, by optimizer: the better ones in benchmarks.lr_find_check (docs/lr-find.md);
adam as adamw."""


@dataclass(frozen=True, kw_only=True)
class LrRangeTestConfig(Config):
    """How the rate rises, and when the test ends."""

    num_steps: int = setting(100, Integer(2), "Steps, each with its own rate.", name="steps")
    start_lr: float = setting(
        1e-5,
        Number(0, above=True),
        "Rate of the first step.",
        default_text=describe_rates({name: rates[0] for name, rates in LR_RANGES.items()}),
    )
    end_lr: float = setting(
        10.0,
        Number(0, above=True),
        "Rate of the last step.",
        default_text=describe_rates({name: rates[1] for name, rates in LR_RANGES.items()}),
    )
    mode: str = setting("exponential", Choice(("exponential", "linear")), "How the rate rises.")

    @classmethod
    def for_optimizer(
        cls, optimizer: str, *, start_lr: float | None = None, end_lr: float | None = None, **others: Any
    ) -> LrRangeTestConfig:
        """The test for this optimizer; rates that are None are those of LR_RANGES."""
        start, end = LR_RANGES[optimizer]
        return cls(start_lr=start if start_lr is None else start_lr, end_lr=end if end_lr is None else end_lr, **others)

    def check(self) -> None:
        if self.start_lr >= self.end_lr:
            raise UsageError(f"start_lr is {self.start_lr:g} and end_lr {self.end_lr:g}; expected end_lr to be larger")
