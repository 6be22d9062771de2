"""What `explain` shows."""

from __future__ import annotations

from dataclasses import dataclass

from fastcifar.config.setting import Config, Integer, NameOrIndices, Names, Switch, Text, setting
from fastcifar.config.train import MAX_SEED
from fastcifar.errors import UsageError

CAM_METHODS = ("gradcam", "gradcampp", "hirescam")
MAX_EXPLAINED = 1_000
"""Of the user's images: each gets a sheet, which takes about a second."""


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(Config):
    """Which test images are explained, at which layers, by which methods, and for which class."""

    n: int = setting(25, Integer(1), "Maximum number of images.")
    select: str | tuple[int, ...] = setting(
        "loss",
        NameOrIndices(("loss", "confidence", "random")),
        "Largest loss or confidence first, at random, or the test images with these indices.",
    )
    correct: bool = setting(False, Switch(), "Correctly classified images instead of misclassified ones.")
    layers: tuple[str, ...] = setting(("all",), Names(), "Modules of the network; all: its stages.")
    methods: tuple[str, ...] = setting(
        ("hirescam", "gradcam"), Names(CAM_METHODS), f"Of {', '.join(CAM_METHODS)}; the grid shows the first."
    )
    target: str = setting(
        "pred",
        Text("pred|true|both|CLASS"),
        "The class whose evidence is mapped: the predicted one, the true one, both, or a class by name.",
    )
    seed: int = setting(0, Integer(0, MAX_SEED), "Seed of --select random.")

    def check(self) -> None:
        if not isinstance(self.select, str) and self.correct:
            raise UsageError("select names images; expected that or correct, not both")
        if not isinstance(self.select, str) and self.n != ExplainConfig.n:
            raise UsageError(f"n is {self.n}, and select names images; expected one of them")
        if self.select != "random" and self.seed != ExplainConfig.seed:
            raise UsageError(f"seed is {self.seed}, and select not 'random'; expected a seed for select 'random' alone")

    def require_no_selection(self) -> None:
        """Raise UsageError if a setting selects test images."""
        for name in ("n", "select", "correct", "seed"):
            if getattr(self, name) != getattr(ExplainConfig, name):
                raise UsageError(f"{name} selects test images; expected it without images of your own")
