"""Networks for small images. Each names its `stages`, from shallow to deep: where class activation maps are taken."""

from __future__ import annotations

from torch import nn

from fastcifar import config
from fastcifar.config import require_choice
from fastcifar.models.resnet import ResNet18
from fastcifar.models.small import SmallNet

_CLASSES: dict[str, type[nn.Module]] = {"resnet18": ResNet18, "small": SmallNet}


def make_model(name: str, num_classes: int) -> nn.Module:
    """The network `name`, (N, 3, H, W) -> (N, num_classes), freshly initialised. Raises UsageError if unknown."""
    require_choice("model", name, config.MODELS)
    return _CLASSES[name](num_classes)


def count_parameters(model: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
