"""Which network, and how it is built."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastcifar.errors import UsageError
from fastcifar.io.checks import require_choice, require_float, require_int

MODELS = ("resnet18", "small")
NORMS = ("batch", "layer", "group")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and how it is built."""

    name: str = "resnet18"
    """One of MODELS, a name of `torchvision.models`, or 'package.module:function' of your own."""
    norm: str = "batch"
    """'batch', 'layer' (one group: over all channels and places of an image) or 'group' (of 16 channels); resnet18."""
    dropout: float = 0.0
    """Probability that an input of the last layer is dropped; resnet18 and small."""
    last_stride: int = 2
    """Stride of the last stage; 1 gives 8x8 maps instead of 4x4; resnet18."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.]+(:\w+)?", self.name):
            raise UsageError(
                f"model is {self.name!r}; expected one of: {', '.join(MODELS)}, a name of torchvision.models, "
                "or package.module:function"
            )
        require_choice("norm", self.norm, NORMS)
        require_float("dropout", self.dropout, 0.0, high=1.0)
        require_int("last_stride", self.last_stride, 1, 2)

    @property
    def names_code(self) -> bool:
        """True if making the network would run code that `name` names: only the user may ask for that, no file."""
        return ":" in self.name

    @property
    def label(self) -> str:
        """The name without the package: for folders."""
        return self.name.rpartition(":")[2]
