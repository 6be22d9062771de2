"""How the learning rate changes during a run."""

from __future__ import annotations

from dataclasses import dataclass

from fastcifar.config.setting import Choice, Config, Integer, Integers, Number, setting
from fastcifar.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """How the learning rate changes during a run."""

    name: str = setting(
        "plateau",
        Choice(("plateau", "onecycle", "cosine", "step", "multistep", "none")),
        "plateau, step, multistep change the rate after epochs; onecycle, cosine after each step.",
        name="sched",
    )
    factor: float = setting(
        0.2, Number(0, 1, above=True, below=True), "plateau, step, multistep: multiply the rate by this."
    )
    patience: int = setting(3, Integer(0), "plateau: epochs without improvement before the rate is reduced.")
    monitor: str = setting(
        "loss",
        Choice(("loss", "accuracy")),
        "plateau: the metric to watch, of validation, or of training without validation.",
    )
    min_lr: float = setting(0.0, Number(0), "plateau, cosine: lower bound of the rate.")
    step_size: int = setting(10, Integer(1), "step: epochs between two reductions.")
    milestones: tuple[int, ...] = setting((), Integers(1), "multistep: reduce the rate after these epochs.")
    pct_start: float = setting(
        0.3, Number(0, 1, above=True, below=True), "onecycle: share of the steps in which the rate rises."
    )
    div_factor: float = setting(25.0, Number(1), "onecycle: initial rate = lr / div_factor.")
    final_div_factor: float = setting(1e4, Number(1), "onecycle: final rate = initial rate / final_div_factor.")
    anneal_strategy: str = setting("cos", Choice(("cos", "linear")), "onecycle: shape of the decrease.")
    warmup_epochs: float = setting(
        0.0, Number(0, 1e6), "Epochs of linear warm-up, from a hundredth of the rate; not with onecycle."
    )

    def check(self) -> None:
        if self.name == "multistep" and not self.milestones:
            raise UsageError("sched is 'multistep' without milestones; expected epochs, e.g. 15,25")
        if self.name == "onecycle" and self.warmup_epochs:
            raise UsageError(
                f"warmup_epochs is {self.warmup_epochs:g} with sched 'onecycle'; expected 0: onecycle warms up by "
                "itself, see pct_start"
            )
