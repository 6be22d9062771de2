"""placeholder until the experiments say which."""

from __future__ import annotations

import torch
from torch import nn


class SmallNet(nn.Module):
    stages = ("layer1", "layer2", "layer3")

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()

        def block(i, o):
            return nn.Sequential(
                nn.Conv2d(i, o, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(o),
                nn.ReLU(),
                nn.Conv2d(o, o, 3, padding=1, bias=False),
                nn.BatchNorm2d(o),
                nn.ReLU(),
            )

        self.layer1 = block(3, 32)
        self.layer2 = block(32, 64)
        self.layer3 = block(64, 128)
        self.head = nn.Linear(128, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.head(x.mean(dim=(2, 3)))
