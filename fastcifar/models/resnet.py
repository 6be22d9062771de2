"""ResNet-18 (He et al., "Deep Residual Learning for Image Recognition", 2015) for 32x32 images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_in, num_out, 1, stride=stride, bias=False), nn.BatchNorm2d(num_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNet18(nn.Module):
    """A 3x3 stem without pooling; 11,173,962 parameters for ten classes.

    The maps of 32x32 images have 32, 16, 8 and 4 pixels a side.
    """

    stages = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(inplace=True),
        )
        num_in = WIDTHS[0]
        for number, width in enumerate(WIDTHS, start=1):
            stride = 1 if number == 1 else 2
            setattr(
                self,
                f"layer{number}",
                nn.Sequential(BasicBlock(num_in, width, stride), BasicBlock(width, width, 1)),
            )
            num_in = width
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) float -> (N, num_classes) logits."""
        x = self.stem(x)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.head(x.mean(dim=(2, 3)))  # (N, 512, H/8, W/8) -> (N, 512)
