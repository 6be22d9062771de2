"""Which network, and how it is built."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastcifar.config.setting import Choice, Config, Integer, Number, Text, setting
from fastcifar.errors import UsageError

MODELS = ("resnet18", "small")
NORMS = ("batch", "layer", "group")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Which network, and how it is built."""

    name: str = setting(
        "resnet18",
        Text(),
        "resnet18, small, a name of torchvision.models, or package.module:function of your own.",
        name="model",
    )
    norm: str = setting(
        "batch",
        Choice(NORMS),
        "Normalisation in resnet18; layer: over all channels and positions of an image; group: of 16 channels.",
    )
    dropout: float = setting(0.0, Number(0, 1, below=True), "Dropout before the last layer of resnet18 and small.")
    last_stride: int = setting(2, Integer(1, 2), "Stride of resnet18's last stage; 1: maps of 8x8 instead of 4x4.")

    def check(self) -> None:
        if not re.fullmatch(r"[\w.]+(:\w+)?", self.name):
            raise UsageError(
                f"model is {self.name!r}; expected one of: {', '.join(MODELS)}, a name of torchvision.models, "
                "or package.module:function"
            )

    @property
    def names_code(self) -> bool:
        """True if making the network would run code that `name` names: only the user may request that, no file."""
        return ":" in self.name

    @property
    def label(self) -> str:
        """The name without the package: for folders."""
        return self.name.rpartition(":")[2]
