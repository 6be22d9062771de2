"""ResNet-18 (He et al., "Deep Residual Learning for Image Recognition", 2015) for 32x32 images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.models.fused_norm import KINDS, RELU, can_fuse, norm_act

WIDTHS = (64, 128, 256, 512)
GROUP_CHANNELS = 16

Norm = Callable[[int], nn.Module]
NORMS: dict[str, Norm] = {
    "batch": nn.BatchNorm2d,
    "layer": lambda width: nn.GroupNorm(1, width),  # over channels and positions of one image (Ba et al. 2016)
    "group": lambda width: nn.GroupNorm(width // GROUP_CHANNELS, width),  # Wu and He 2018
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: a 1x1 convolution where the shape changes."""

    def __init__(self, num_in: int, num_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = norm(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = norm(num_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride=stride, bias=False), norm(num_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = norm_relu(self.conv1(x), self.norm1)
        return norm_relu(self.conv2(out), self.norm2, self.shortcut(x))


def norm_relu(x: torch.Tensor, norm: nn.Module, shortcut: torch.Tensor | None = None) -> torch.Tensor:
    """relu(norm(x) + shortcut)."""
    if can_fuse(x, norm) and (shortcut is None or shortcut.shape == x.shape):
        return norm_act(x, norm, RELU, shortcut=shortcut)
    out = norm(x)
    return F.relu(out if shortcut is None else out + shortcut, inplace=True)


class Stem(nn.Sequential):
    """A 3x3 convolution, a normalisation and ReLU: (N, 3, H, W) -> (N, 64, H, W)."""

    def __init__(self, norm: Norm) -> None:
        conv = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        super().__init__(conv, norm(WIDTHS[0]), nn.ReLU(inplace=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        conv, norm, relu = self
        x = conv(x)
        return norm_act(x, norm, KINDS[type(relu)]) if can_fuse(x, norm, relu) else relu(norm(x))


class ResNet18(nn.Module):
    """A 3x3 stem without pooling; 11,173,962 parameters for ten classes.

    norm: 'batch', 'layer' or 'group'. dropout: before the last layer. last_stride: 1 keeps the last stage at the size
    of the one before. Feature maps of 32x32 images have sides of 32, 16, 8 and 4 (or 8) pixels.
    """

    stages = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, num_classes: int = 10, norm: str = "batch", dropout: float = 0.0, last_stride: int = 2) -> None:
        super().__init__()
        make_norm = NORMS[norm]
        self.stem = Stem(make_norm)
        num_in = WIDTHS[0]
        for name, width, stride in zip(self.stages, WIDTHS, (1, 2, 2, last_stride), strict=True):
            first = BasicBlock(num_in, width, stride, make_norm)
            self.add_module(name, nn.Sequential(first, BasicBlock(width, width, 1, make_norm)))
            num_in = width
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) float -> (N, num_classes) logits."""
        x = self.stem(x)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.head(self.dropout(x.mean(dim=(2, 3))))  # (N, 512, H/8, W/8) -> (N, 512)
