"""Which network, and how it is built."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastcifar.config.setting import Choice, Config, Integer, Number, Text, setting
from fastcifar.errors import UsageError

MODELS = ("resnet18", "small")
TIMM, HUB = "timm:", "timm:hf-hub:"
"""How the names of timm's networks begin, and of those that it downloads from the Hugging Face hub."""
NAME = re.compile(r"timm:hf-hub:[\w.-]+/[\w.-]+(@[\w.-]+)?|timm:[\w.]+|[\w.]+(:\w+)?")
NORMS = ("batch", "layer", "group")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Which network, and how it is built."""

    name: str = setting(
        "resnet18",
        Text(),
        "resnet18, small, a name of torchvision.models, timm:NAME, or package.module:function of your own.",
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
        if not NAME.fullmatch(self.name):
            hub = f"; on the Hugging Face hub: {HUB}OWNER/NAME" if self.name.startswith(TIMM) else ""
            raise UsageError(
                f"model is {self.name!r}; expected one of: {', '.join(MODELS)}, a name of torchvision.models, "
                f"timm:NAME, or package.module:function{hub}"
            )

    @property
    def is_on_hub(self) -> bool:
        """True if timm downloads the network from the Hugging Face hub."""
        return self.name.startswith(HUB)

    @property
    def names_code(self) -> bool:
        """True if making the network would run or download what `name` names: only the user may request that, no
        file."""
        return self.is_on_hub or (":" in self.name and not self.name.startswith(TIMM))

    @property
    def origin(self) -> str:
        """Where a network comes from that only the user may request, for messages."""
        return "downloaded from the Hugging Face hub" if self.is_on_hub else "code that is not part of fastcifar"

    @property
    def label(self) -> str:
        """The name without package and owner: for folders."""
        return self.name.rpartition(":")[2].rpartition("/")[2]
