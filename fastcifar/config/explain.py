"""What `explain` is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastcifar.config.train import MAX_SEED
from fastcifar.errors import UsageError
from fastcifar.io.checks import require_bool, require_choice, require_int

CAM_METHODS = ("gradcam", "gradcampp", "hirescam")
SELECTIONS = ("loss", "confidence", "random")


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Which test images are explained, where in the network, by which method, and for which class."""

    n: int = 25
    """How many images, at most."""
    select: str | tuple[int, ...] = "loss"
    """Largest 'loss' or 'confidence' first, or at 'random'; or these test images, whether right or wrong."""
    correct: bool = False
    """Rightly classified images instead of misclassified ones."""
    layers: tuple[str, ...] = ("all",)
    """Modules of the network that give maps; 'all': its stages."""
    methods: tuple[str, ...] = ("gradcam", "gradcampp")
    """Of CAM_METHODS; the first is that of the grid."""
    target: str = "pred"
    """The class whose evidence is mapped: 'pred', 'true', 'both', or the name of a class."""
    seed: int = 0
    """Of select 'random'."""

    def __post_init__(self) -> None:
        require_int("n", self.n, 1)
        require_int("seed", self.seed, 0, MAX_SEED)
        require_bool("correct", self.correct)
        if isinstance(self.select, str):
            require_choice("select", self.select, SELECTIONS)
        else:
            for row in self.select:
                require_int("select", row, 0)
            _require_different("select", self.select)
            if self.correct:
                raise UsageError("select names images; expected that or correct, not both")
        for method in self.methods:
            require_choice("methods", method, CAM_METHODS)
        _require_different("methods", self.methods)
        _require_different("layers", self.layers)


def _require_different(name: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) != len(values):
        raise UsageError(f"{name} is {','.join(map(str, values))!r}; expected at least one, each once")
